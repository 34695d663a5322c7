#pragma once

#include <cstdint>

namespace hexad {

// The network's numbers, and from them where each part of it lies in the flat buffers.
struct PixelcnnShape {
  int64_t levels, height, width, channels, layers, kernel;

  static constexpr int64_t kPlanes = 2;
  int64_t reach() const { return kernel / 2; }
  int64_t inputs(int64_t layer) const { return layer ? channels : kPlanes; }
  int64_t places() const { return height * width; }
  // The first layer sees no tap at the centre.
  int64_t vertical_runs(int64_t layer) const { return reach() + (layer > 0); }
  int64_t vertical_size(int64_t layer) const {
    return vertical_runs(layer) * kernel * inputs(layer);
  }
  int64_t horizontal_size(int64_t layer) const { return (reach() + (layer > 0)) * inputs(layer); }
  static int64_t panel_floats(int64_t outputs, int64_t size) {
    return (outputs + 15) / 16 * 16 * size;
  }

  // Weights: the layers in turn, then the read-out.
  int64_t layer_weights(int64_t layer) const {
    const int64_t c2 = 2 * channels;
    return panel_floats(c2, vertical_size(layer)) + c2 + places() * c2 + panel_floats(c2, c2) + c2 +
           panel_floats(c2, horizontal_size(layer)) + c2 + places() * c2 +
           panel_floats(channels, channels) + channels;
  }
  int64_t weights() const {
    return layer_weights(0) + (layers - 1) * layer_weights(1) +
           panel_floats(2 * channels, channels) + 2 * channels + panel_floats(levels, channels) +
           levels + places() * levels;
  }

  // Cache of an image: how many pixels it holds, then for each layer the rows of the vertical
  // stack's input that the next row needs, the horizontal stack's output along this row, and what
  // the vertical stack hands down along this row.
  static constexpr int64_t kHeader = 16;
  int64_t row_floats(int64_t layer) const { return (width + 2 * reach()) * inputs(layer); }
  int64_t across_floats() const { return (width + reach()) * channels; }
  int64_t layer_cache(int64_t layer) const {
    return (reach() + 1) * row_floats(layer) + across_floats() + width * 2 * channels;
  }
  int64_t cache() const { return kHeader + layer_cache(0) + (layers - 1) * layer_cache(1); }
};

constexpr int64_t kPixelcnnChannels = 1024;  // the most: a thread's scratch lies on its stack
constexpr int64_t kPixelcnnTile = 8;         // images that a thread takes through a pixel together

struct GatedPixelcnnArgs {
  PixelcnnShape shape;
  const float* weights;
  int64_t* image;  // (batch, height, width): drawn where there are seeds, read where not
  float* cache;
  int64_t cache_stride;
  const int64_t* seeds;
  float temperature;
  int64_t batch, begin, end;  // pixels in raster order
  float* logits;              // (batch, end - begin, levels)
};

}  // namespace hexad

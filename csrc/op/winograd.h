#pragma once

#include <cstdint>

namespace hexad {

constexpr int kWinogradPoints = 36;  // of F(4 x 4, 3 x 3)

// A point's floats are kept this far apart beyond what they hold: powers of two would share sets of
// a cache.
constexpr int64_t kWinogradApart = 16;

inline int64_t winograd_lanes(int64_t channels) {
  return (channels + 15) / 16 * 16;
}

// How many tiles of 4 x 4 outputs are transformed at once: what the caches hold, and whole sixes,
// which is what the products write.
inline int64_t winograd_tiles(int64_t inputs, int64_t outputs, int64_t tiles) {
  const int64_t fit = 43690 / (winograd_lanes(inputs) + winograd_lanes(outputs) + 1);
  const int64_t most = fit > 48 ? fit : 48;
  return ((tiles < most ? tiles : most) + 5) / 6 * 6;
}

// Floats of workspace: transformed inputs, and the products.
inline int64_t winograd_workspace(int64_t inputs, int64_t outputs, int64_t tiles) {
  const int64_t both = winograd_lanes(inputs) + winograd_lanes(outputs);
  return kWinogradPoints * (winograd_tiles(inputs, outputs, tiles) * both + 2 * kWinogradApart);
}

struct WinogradArgs {
  const float* x;
  const float* taps;  // contiguous: (36, panels of 16 outputs, inputs, 16)
  const float* bias;  // null: none
  float* y;           // contiguous
  float* workspace;
  int64_t batch, inputs, outputs, height, width;
  int64_t x_stride[4];
};

}  // namespace hexad

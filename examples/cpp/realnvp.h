// hexad's RealNVP, from noise to images.
#pragma once

#include <algorithm>
#include <hexad/hexad.hpp>
#include <string>
#include <vector>

#include "safetensors.h"

class RealNVP {
 public:
  static constexpr float kClamp = 2.0f, kMargin = 0.05f;  // of the manifest's config
  static constexpr float kLevels = 17;                    // grey levels of the digits

  explicit RealNVP(const Safetensors& file) {
    const auto& shape = file.shape("layers.1.bias");
    if (shape.size() != 3 || shape[0] != 1 || shape[1] != shape[2] || shape[1] % 2)
      throw std::runtime_error("layers.1.bias: wants (1, size, size), size even");
    size_ = shape[1];
    bias_ = file.floats("layers.1.bias", shape);
    log_scale_ = file.floats("layers.1.log_scale", shape);
    int64_t i = 2, after = 0;
    const auto there = [&] { return file.has("layers." + std::to_string(i) + ".inputs.weight"); };
    for (; there(); ++i) before_.push_back(coupling(file, i, {1, size_, size_}, (i - 2) % 2));
    for (++i; there(); ++i)
      after_.push_back(coupling(file, i, {4, size_ / 2, size_ / 2}, after++ % 2));
    // By channel first, then by checkerboard; either kind starts unflipped.
    int64_t board = 0;
    for (Coupling& c : after_)
      if (c.checkerboard) c.flip = board++ % 2;
  }
  int64_t size() const { return size_; }

  // An image of grey levels 0 to 1 for each seed.
  std::vector<float> sample(std::vector<int64_t> seeds) const {
    const int64_t n = int64_t(seeds.size()), s = size_, h = s / 2;
    std::vector<float> z(static_cast<size_t>(n * s * s)), x(z.size());
    hexad::call(hexad_randn, hexad::view(seeds, {n}), hexad::view(z, {n, 4, h, h}), 0);
    for (auto c = after_.rbegin(); c != after_.rend(); ++c) invert(*c, z, n);
    for (int64_t b = 0; b < n; ++b)  // channels back to 2x2 blocks of pixels
      for (int64_t c = 0; c < 4; ++c)
        for (int64_t i = 0; i < h; ++i)
          for (int64_t j = 0; j < h; ++j)
            x[size_t((b * s + 2 * i + c / 2) * s + 2 * j + c % 2)] =
                z[size_t(((b * 4 + c) * h + i) * h + j)];
    for (auto c = before_.rbegin(); c != before_.rend(); ++c) invert(*c, x, n);
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t pixel = i % bias_.size();
      const float y = x[i] * std::exp(-log_scale_[pixel]) - bias_[pixel];
      const float p = (1 / (1 + std::exp(-y)) - kMargin) / (1 - 2 * kMargin);
      x[i] = std::clamp((p * kLevels - 0.5f) / (kLevels - 1), 0.0f, 1.0f);
    }
    return x;
  }

 private:
  struct Linear {
    int64_t out, in;
    std::vector<float> weight, bias;
  };
  struct Coupling {
    bool checkerboard;
    int64_t flip;
    std::vector<int64_t> shape;
    std::vector<size_t> passive;
    Linear layers[3];
  };

  static Linear linear(const Safetensors& file, const std::string& name) {
    const auto& shape = file.shape(name + ".weight");
    if (shape.size() != 2) throw std::runtime_error(name + ".weight: wants two dimensions");
    return {shape[0], shape[1], file.floats(name + ".weight", shape),
            file.floats(name + ".bias", {shape[0]})};
  }
  static Coupling coupling(const Safetensors& file, int64_t i, const std::vector<int64_t>& shape,
                           int64_t flip) {
    const std::string at = "layers." + std::to_string(i) + ".";
    Coupling c = {
        true,
        flip,
        shape,
        {},
        {linear(file, at + "inputs"), linear(file, at + "middle"), linear(file, at + "outputs")}};
    const int64_t pixels = shape[1] * shape[2], all = shape[0] * pixels;
    c.checkerboard = c.layers[2].out == 2 * all;
    for (int64_t e = 0; e < all; ++e) {
      const int64_t w = e % shape[2], h = e / shape[2] % shape[1], channel = e / pixels;
      const bool first = c.checkerboard ? (h + w) % 2 == 0 : channel < shape[0] / 2;
      if (first != bool(flip)) c.passive.push_back(size_t(e));
    }
    if (c.layers[0].in != int64_t(c.passive.size()) || c.layers[1].in != c.layers[0].out ||
        c.layers[2].in != c.layers[1].out || (!c.checkerboard && c.layers[2].out != all))
      throw std::runtime_error(at + ": layers that do not fit each other");
    return c;
  }

  // y = the coupling's inverse of y, in place of y; the passive half sets shift and scale.
  static void invert(const Coupling& c, std::vector<float>& y, int64_t n) {
    const int64_t all = c.shape[0] * c.shape[1] * c.shape[2];
    std::vector<float> h;
    for (int64_t b = 0; b < n; ++b)
      for (size_t e : c.passive) h.push_back(y[size_t(b * all) + e]);
    for (int i = 0; i < 3; ++i) {
      const Linear& layer = c.layers[i];
      std::vector<float> next(static_cast<size_t>(n * layer.out));
      hexad::call(hexad_linear, hexad::view(h, {n, layer.in}),
                  hexad::view(layer.weight, {layer.out, layer.in}),
                  hexad::view(layer.bias, {layer.out}), nullptr, hexad::view(next, {n, layer.out}),
                  i < 2 ? 1 : 0);
      h = std::move(next);
    }
    const int64_t each = c.layers[2].out / 2, pixels = c.shape[1] * c.shape[2];
    const hexad::View<float> shift(h.data(), {n, each / pixels, c.shape[1], c.shape[2]},
                                   {2 * each, pixels, c.shape[2], 1});
    const hexad::View<float> scale(h.data() + each, {n, each / pixels, c.shape[1], c.shape[2]},
                                   {2 * each, pixels, c.shape[2], 1});
    std::vector<float> x(y.size()), log_det(static_cast<size_t>(n));
    hexad::call(hexad_coupling, hexad::view(y, {n, c.shape[0], c.shape[1], c.shape[2]}), shift,
                scale, hexad::view(x, {n, c.shape[0], c.shape[1], c.shape[2]}),
                hexad::view(log_det, {n}), nullptr, nullptr, 1, c.checkerboard ? 1 : 0, c.flip, 1,
                kClamp);
    y = std::move(x);
  }

  int64_t size_ = 0;
  std::vector<float> bias_, log_scale_;
  std::vector<Coupling> before_, after_;
};

// hexad's GPT, a token at a time over a key-value cache; the bits are those of a whole prompt at
// once.
#pragma once

#include <cctype>
#include <hexad/hexad.hpp>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "safetensors.h"

// Byte-level BPE: tokens 0 to 255 are bytes, 256 + i joins the pair of merge i.
class Vocabulary {
 public:
  explicit Vocabulary(const std::vector<int32_t>& merges) {
    for (int i = 0; i < 256; ++i) pieces_.push_back(std::string(1, char(i)));
    for (size_t i = 0; i + 1 < merges.size(); i += 2) {
      const int32_t left = merges[i], right = merges[i + 1], known = int32_t(pieces_.size());
      if (left < 0 || right < 0 || left >= known || right >= known)
        throw std::runtime_error("merges: one joins tokens that are not defined yet");
      joined_[{left, right}] = known;
      pieces_.push_back(pieces_[size_t(left)] + pieces_[size_t(right)]);
    }
  }
  size_t size() const { return pieces_.size(); }
  const std::string& text(int64_t token) const { return pieces_.at(size_t(token)); }

  std::vector<int32_t> encode(const std::string& text) const {
    std::vector<int32_t> tokens;
    for (size_t at = 0; at < text.size();) {
      const size_t end = piece(text, at);
      std::vector<int32_t> part;
      for (; at < end; ++at) part.push_back(static_cast<unsigned char>(text[at]));
      join(part);
      tokens.insert(tokens.end(), part.begin(), part.end());
    }
    return tokens;
  }

 private:
  static bool word(char c) {
    return (static_cast<unsigned char>(c) < 128 && std::isalpha(c)) || c == '_';
  }
  static bool digit(char c) { return c >= '0' && c <= '9'; }
  static bool space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
  static bool mark(char c) { return !word(c) && !digit(c) && !space(c); }

  // Where the piece that starts at `at` ends; no merge crosses its borders.
  static size_t piece(const std::string& text, size_t at) {
    const size_t n = text.size();
    const auto run = [&](size_t i, bool (*is)(char)) {
      while (i < n && is(text[i])) ++i;
      return i;
    };
    if (text[at] == '\n')
      return run(run(at, [](char c) { return c == '\n'; }), [](char c) { return c == ' '; });
    const size_t first = text[at] == ' ' && at + 1 < n ? at + 1 : at;
    for (auto is : {word, digit, mark})
      if (is(text[first])) return run(first, is);
    return run(at, space);
  }
  // The earliest merge first, as often as there is one.
  void join(std::vector<int32_t>& part) const {
    for (;;) {
      int32_t best = int32_t(pieces_.size());
      for (size_t i = 0; i + 1 < part.size(); ++i) {
        const auto found = joined_.find({part[i], part[i + 1]});
        if (found != joined_.end() && found->second < best) best = found->second;
      }
      if (best == int32_t(pieces_.size())) return;
      std::vector<int32_t> shorter;
      for (size_t i = 0; i < part.size(); ++i) {
        const auto found =
            i + 1 < part.size() ? joined_.find({part[i], part[i + 1]}) : joined_.end();
        const bool here = found != joined_.end() && found->second == best;
        shorter.push_back(here ? best : part[i]);
        i += here;
      }
      part = shorter;
    }
  }

  std::vector<std::string> pieces_;
  std::map<std::pair<int32_t, int32_t>, int32_t> joined_;
};

class GPT {
 public:
  static constexpr int64_t kContext = 256, kHeads = 4;  // of the manifest's config
  static constexpr double kEpsilon = 1e-5;

  explicit GPT(const Safetensors& file) {
    const auto& shape = file.shape("embedding.weight");
    if (shape.size() != 2 || shape[1] % (2 * kHeads))
      throw std::runtime_error("embedding.weight: wants (vocabulary, width)");
    vocab_ = shape[0], width_ = shape[1];
    embedding_ = file.floats("embedding.weight", shape);
    norm_ = affine(file, "norm", {width_});
    for (int64_t i = 0; file.has("blocks." + std::to_string(i) + ".qkv.weight"); ++i) {
      const std::string at = "blocks." + std::to_string(i) + ".";
      blocks_.push_back({affine(file, at + "norm1", {width_}), affine(file, at + "norm2", {width_}),
                         affine(file, at + "qkv", {3 * width_, width_}),
                         affine(file, at + "project", {width_, width_}),
                         affine(file, at + "up", {4 * width_, width_}),
                         affine(file, at + "down", {width_, 4 * width_}),
                         std::vector<float>(size_t(kContext * width_)),
                         std::vector<float>(size_t(kContext * width_))});
    }
    const int64_t half = width_ / kHeads / 2;
    for (int64_t p = 0; p < kContext; ++p)
      for (int64_t j = 0; j < half; ++j) {
        const double angle = double(p) * std::pow(10000.0, -2.0 * double(j) / double(2 * half));
        cos_.push_back(float(std::cos(angle)));
        sin_.push_back(float(std::sin(angle)));
      }
  }
  int64_t vocab() const { return vocab_; }

  // The logits after one more token.
  std::vector<float> next(int32_t token) {
    if (position_ >= kContext)
      throw std::runtime_error("the text is longer than the model's context of 256 tokens");
    const int64_t w = width_, d = w / kHeads;
    std::vector<float> h(embedding_.begin() + token * w, embedding_.begin() + (token + 1) * w);
    std::vector<float> n(h.size()), qkv(3 * h.size()), turned(h.size()), mixed(h.size()),
        wide(4 * h.size()), sum(h.size());
    std::vector<int32_t> position = {position_}, used = {position_ + 1};
    for (Block& b : blocks_) {
      normalise(h, b.norm1, n);
      linear(n, b.qkv, qkv, 0, nullptr);
      hexad::View<float> q(qkv.data(), {1, kHeads, 1, d}), k(qkv.data() + w, {1, kHeads, 1, d});
      hexad::View<float> v(qkv.data() + 2 * w, {1, kHeads, 1, d});
      auto cos = hexad::view(cos_, {kContext, d / 2}), sin = hexad::view(sin_, {kContext, d / 2});
      auto keys = hexad::view(b.keys, {1, kHeads, kContext, d}),
           values = hexad::view(b.values, {1, kHeads, kContext, d});
      auto at = hexad::view(position, {1});
      hexad::call(hexad_append_kv, k, v, keys, values, at, nullptr, cos, sin, nullptr, nullptr, 0);
      hexad::call(hexad_rope, q, cos, sin, at, hexad::view(turned, {1, kHeads, 1, d}), 0);
      float lse[kHeads];
      hexad::call(hexad_decode, hexad::view(turned, {1, kHeads, d}), keys, values,
                  hexad::view(used, {1}), nullptr, nullptr, nullptr, nullptr, nullptr,
                  hexad::view(mixed, {1, kHeads, d}), hexad::View<float>(lse, {1, kHeads}), nullptr,
                  -1, 0.0f, float(1 / std::sqrt(double(d))));
      linear(mixed, b.project, sum, 0, &h);
      normalise(sum, b.norm2, n);
      linear(n, b.up, wide, 3, nullptr);
      linear(wide, b.down, h, 0, &sum);
    }
    ++position_;
    normalise(h, norm_, n);
    std::vector<float> logits(static_cast<size_t>(vocab_));
    hexad::call(hexad_linear, hexad::view(n, {1, w}), hexad::view(embedding_, {vocab_, w}), nullptr,
                nullptr, hexad::view(logits, {1, vocab_}), 0);
    return logits;
  }

 private:
  struct Affine {
    std::vector<float> weight, bias;
  };
  struct Block {
    Affine norm1, norm2, qkv, project, up, down;
    std::vector<float> keys, values;
  };
  static Affine affine(const Safetensors& file, const std::string& name,
                       const std::vector<int64_t>& shape) {
    return {file.floats(name + ".weight", shape), file.floats(name + ".bias", {shape[0]})};
  }
  static void normalise(std::vector<float>& x, Affine& a, std::vector<float>& y) {
    const int64_t d = int64_t(x.size());
    hexad::call(hexad_norm, hexad::view(x, {1, d}), hexad::view(a.weight, {d}),
                hexad::view(a.bias, {d}), nullptr, nullptr, hexad::view(y, {1, d}), 0, kEpsilon, 0,
                0);
  }
  static void linear(std::vector<float>& x, Affine& a, std::vector<float>& y, int32_t activation,
                     std::vector<float>* residual) {
    const int64_t in = int64_t(x.size()), out = int64_t(y.size());
    const auto added = hexad::View<float>(residual ? residual->data() : nullptr, {1, out});
    hexad::call(hexad_linear, hexad::view(x, {1, in}), hexad::view(a.weight, {out, in}),
                hexad::view(a.bias, {out}), residual ? &added : nullptr, hexad::view(y, {1, out}),
                activation);
  }

  int64_t vocab_ = 0, width_ = 0;
  int32_t position_ = 0;
  std::vector<float> embedding_, cos_, sin_;
  Affine norm_;
  std::vector<Block> blocks_;
};

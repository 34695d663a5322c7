// One tile of attention's backward in bfloat16 on the matrix unit (level amx): up to kQueries rows
// of one head against kKeys keys, in squares of 32 x 32. The gradients of keys are summed as their
// transposes, elements by keys, so that P and dS are right factors as they come from the scores;
// the other form of dS, for the sum over keys, is a left factor. The scale is put on at the end.
#pragma once

#include "cpu/gradient_sight.h"
#include "cpu/math.h"
#include "cpu/tile_amx.h"

#if HEXAD_TILES
namespace hexad {
namespace {

constexpr int kAmxQueries = 256, kAmxKeys = 256;

class GradientAmx : public GradientSight<bf16, kAmxQueries, kAmxKeys> {
  using Sight = GradientSight<bf16, kAmxQueries, kAmxKeys>;

 public:
  static constexpr int kQueries = kAmxQueries, kKeys = kAmxKeys;
  static bool in_place(const AttentionBackwardArgs&) { return false; }
  static int64_t padded(int64_t rows) { return round_up(rows, kSide); }

  GradientAmx(const AttentionBackwardArgs& a, float* room)
      : Sight(a),
        d_(round_up(a.head_dim, kSide)),
        dv_(round_up(a.value_dim, kSide)),
        room_(room),
        turned_k_(take(kKeys / 2 * d_)),
        turned_v_(take(kKeys / 2 * dv_)),
        rows_k_(take(kKeys / 2 * d_)),
        grad_k_(take(kKeys * d_)),
        grad_v_(take(kKeys * dv_)),
        turned_q_(take(kQueries / 2 * d_)),
        turned_g_(take(kQueries / 2 * dv_)),
        rows_q_(take(kQueries / 2 * d_)),
        rows_g_(take(kQueries / 2 * dv_)),
        scores_(take(kSquare)),
        products_(take(kSquare)),
        minus_delta_(take(kQueries * kLanes)),
        minus_lse_(take(kQueries)),
        p_(take(kQueries / 2 * kKeys)),
        ds_(take(kQueries / 2 * kKeys)),
        along_(take(kQueries / 2 * kKeys)) {}

  int64_t columns() const { return d_; }
  float* rest() const { return room_; }  // scratch that the tile leaves

  HEXAD_APART void take_keys(int64_t b, int64_t h, int64_t base) {
    find_keys(b, h, base);
    pack_right_turned(turned_k_, k_, a_.k_stride[2], count_, a_.head_dim);
    pack_right_turned(turned_v_, v_, a_.v_stride[2], count_, a_.value_dim);
    pack_right(rows_k_, k_, a_.k_stride[2], count_, kKeys, a_.head_dim);
  }

  HEXAD_APART void take_queries(int64_t first) {
    find_queries(first);
    const int64_t q_row = a_.q_stride[2], g_row = a_.grad_out_stride[2];
    const bf16 *q = q_ + first * q_row, *g = g_ + first * g_row;
    left_q_ = pack_left(rows_q_, q, q_row, rows_, a_.head_dim);
    left_g_ = pack_left(rows_g_, g, g_row, rows_, a_.value_dim);
    pack_left_turned(turned_q_, q, q_row, rows_, kQueries, a_.head_dim);
    pack_left_turned(turned_g_, g, g_row, rows_, kQueries, a_.value_dim);
    const auto quiet = [](float x) { return x == x ? x : __builtin_nanf(""); };
    for (int64_t r = 0; r < round_up(rows_, kSide); ++r) {
      const int64_t at = first + std::min(r, rows_ - 1);
      minus_lse_[r] = quiet(lse_[at * a_.lse_stride[2]]) * -kLog2E;
      store(minus_delta_ + r * kLanes, set1(-quiet(delta_[at])));
    }
  }

  void clear_keys() {
    std::fill_n(grad_k_, kKeys * d_, 0.f);
    std::fill_n(grad_v_, kKeys * dv_, 0.f);
  }

  HEXAD_APART void write_keys(int64_t b, int64_t h, int64_t base) const {
    bf16* k = static_cast<bf16*>(a_.grad_k) + b * a_.grad_k_stride[0] + h * a_.grad_k_stride[1];
    bf16* v = static_cast<bf16*>(a_.grad_v) + b * a_.grad_v_stride[0] + h * a_.grad_v_stride[1];
    const int64_t n = std::min<int64_t>(kKeys, a_.keys - base);
    write_turned(k + base * a_.grad_k_stride[2], a_.grad_k_stride[2], grad_k_, n, a_.head_dim,
                 a_.scale);
    write_turned(v + base * a_.grad_v_stride[2], a_.grad_v_stride[2], grad_v_, n, a_.value_dim,
                 1.f);
  }

  HEXAD_APART void write_queries(bf16* to, int64_t row_step, const float* from, int64_t n) const {
    alignas(64) float row[2 * kLanes];
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 0; d < a_.head_dim; d += kSide) {
        const float* at = grad_q_square(from, i / kSide, d / kSide) + place(i % kSide, 0);
        store(row, load(at) * set1(a_.scale));
        store(row + kLanes, load(at + 256) * set1(a_.scale));
        write(to + i * row_step + d, row, std::min(kSide, a_.head_dim - d));
      }
  }

  // Adds what the tile gives to its keys' gradients and, at `grad_q`, to its rows'.
  template <bool kForKeys, bool kForQueries>
  void visit(float* grad_q, int64_t) {
    const Tiles tiles;
    settle();
    const bool partial = find_visible(rows_ % kSide == 0 && count_ % kSide == 0);
    const int strips = int(round_up(rows_, kSide) / kSide);
    int begin[kStrips], end[kStrips];   // the panels of keys that a strip of rows sees
    int whole[kStrips], part[kStrips];  // those of which it sees all
    for (int s = 0; s < strips; ++s) {
      begin[s] = whole[s] = 0, end[s] = part[s] = int(round_up(count_, kSide) / kSide);
      if (!partial) continue;
      const int64_t last = std::min((s + 1) * kSide, rows_);
      int from = kKeys, upto = 0, after = 0, before = kKeys;
      for (int64_t i = s * kSide; i < last; ++i) {
        after = std::max(after, from_[i]), before = std::min(before, end_[i]);
        if (from_[i] < upto_[i]) from = std::min(from, from_[i]), upto = std::max(upto, upto_[i]);
      }
      begin[s] = from / int(kSide), end[s] = int(round_up(upto, kSide) / kSide);
      whole[s] = int(round_up(after, kSide) / kSide), part[s] = before / int(kSide);
      if (a_.mask || last % kSide) part[s] = 0;
    }
    for (int s = 0; s < strips; ++s)
      for (int n = begin[s]; n < end[s]; ++n) {
        score(s, n);
        if (whole[s] <= n && n < part[s])
          a_.softcap > 0 ? weigh<false, true>(s, n) : weigh<false, false>(s, n);
        else
          a_.softcap > 0 ? weigh<true, true>(s, n) : weigh<true, false>(s, n);
      }
    settle();
    if (partial && !finite()) return visit_carefully(kForKeys, grad_q, begin, end, strips);
    if (kForKeys) {
      add_to_keys(grad_v_, turned_g_, p_, dv_, begin, end, strips);
      add_to_keys(grad_k_, turned_q_, ds_, d_, begin, end, strips);
    }
    for (int s = 0; kForQueries && s < strips; ++s)
      for (int64_t m = 0; begin[s] < end[s] && m < d_ / kSide; ++m)
        add_square(grad_q_square(grad_q, s, m), along_tiles(s).from(begin[s]),
                   rows_k_tiles(rows_k_, m).from(begin[s]), end[s] - begin[s]);
  }

 private:
  static constexpr int kStrips = kQueries / int(kSide), kPanels = kKeys / int(kSide);
  static constexpr float kLog2E = 1.44269504088896341f;

  float* take(int64_t n) {
    float* p = room_;
    room_ += n;
    return p;
  }

  // Where (row, column) stands in a square.
  static int64_t place(int64_t row, int64_t column) {
    return row / 16 * 512 + column / 16 * 256 + row % 16 * 16 + column % 16;
  }
  template <class P>
  P* grad_q_square(P* sums, int64_t strip, int64_t m) const {
    return sums + (strip * (d_ / kSide) + m) * kSquare;
  }
  static float* key_square(float* sums, int64_t m, int64_t panel) {
    return sums + (m * kPanels + panel) * kSquare;
  }
  static Tiled turned_tiles(const float* turned, int64_t m) {
    return {reinterpret_cast<const char*>(turned + 2 * m * kStrips * 256), 64, kStrips * 1024,
            1024};
  }
  static Tiled weights(const float* w, int64_t panel) {
    return panel_tiles(w + panel * (kQueries / 2) * kSide);
  }
  Tiled along_tiles(int64_t strip) const {
    return {reinterpret_cast<const char*>(along_ + 2 * strip * kPanels * 256), 64, kPanels * 1024,
            1024};
  }
  static Tiled rows_k_tiles(const float* rows, int64_t m) {
    return panel_tiles(rows + m * (kKeys / 2) * kSide);
  }

  // The strips from the first to the last that see a panel of keys.
  static void find_strips(int64_t panel, const int* begin, const int* end, int strips, int* from,
                          int* upto) {
    *from = strips, *upto = 0;
    for (int s = 0; s < strips; ++s)
      if (begin[s] <= panel && panel < end[s]) *from = std::min(*from, s), *upto = s + 1;
  }

  // Keys take what the strips that see them give. Two squares' elements of the queries at a time:
  // these stay in L1 for all panels.
  static HEXAD_APART void add_to_keys(float* sums, const float* turned, const float* w,
                                      int64_t elements, const int* begin, const int* end,
                                      int strips) {
    for (int64_t half = 0; half < elements / kSide; half += 2)
      for (int64_t n = 0; n < kPanels; ++n) {
        int from, upto;
        find_strips(n, begin, end, strips, &from, &upto);
        for (int64_t m = half; from < upto && m < std::min(half + 2, elements / kSide); ++m)
          add_square(key_square(sums, m, n), turned_tiles(turned, m).from(from),
                     weights(w, n).from(from), upto - from);
      }
  }

  static HEXAD_APART void write_turned(bf16* to, int64_t row_step, const float* from, int64_t n,
                                       int64_t elements, float scale) {
    alignas(64) float row[kLanes];
    for (int64_t j = 0; j < n; j += kLanes)
      for (int64_t d = 0; d < elements; d += kLanes) {
        const float* tile =
            from + (d / kSide * kPanels + j / kSide) * kSquare + place(d % kSide, j % kSide);
        vf square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load(tile + i * kLanes) * set1(scale);
        transpose(square);
        for (int i = 0; i < std::min<int64_t>(kLanes, n - j); ++i) {
          store(row, square[i]);
          write(to + (j + i) * row_step + d, row, std::min<int64_t>(kLanes, elements - d));
        }
      }
  }

  // Scores and <grad_out, v> - delta of a square.
  HEXAD_APART void score(int64_t strip, int64_t panel) const {
    const auto rows = [&](const Tiled& t) {
      return Tiled{t.at + strip * 2 * t.half, t.row, t.half, t.step};
    };
    clear_square();
    multiply_square(rows(left_q_), panel_tiles(turned_k_ + panel * d_ * kLanes), d_ / kSide);
    store_square(scores_);
    fill_square(minus_delta_ + strip * kSide * kLanes);
    multiply_square(rows(left_g_), panel_tiles(turned_v_ + panel * dv_ * kLanes), dv_ / kSide);
    store_square(products_);
  }

  // What row r sees of the 32 keys from c, a bit each; `add`: what a mask adds to them.
  uint32_t seen(int64_t r, int64_t c, float* add) const {
    const int64_t from = std::max<int64_t>(from_[r], c), upto = std::min<int64_t>(end_[r], c + 32);
    if (r >= rows_ || from >= upto) return 0;
    const auto below = [](int64_t n) { return uint32_t((uint64_t(1) << n) - 1); };
    uint32_t bits = below(upto - c) & ~below(from - c);
    if (!a_.mask) return bits;
    read_mask(r, from, upto, add + (from - c));
    for (int64_t j = from; j < upto; ++j)
      if (add[j - c] == -__builtin_inff()) bits &= ~(1u << (j - c));
    return bits;
  }

  // 2^x, relative error below 8e-5, a minimax fit: for what is rounded to bfloat16.
  static HEXAD_INLINE __m512 exp2(__mmask16 there, __m512 x) {
    const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    __m512 y = _mm512_set1_ps(0.07802452f);
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.22606716f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.69583354f));
    y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(0.99992522f));
    return _mm512_maskz_scalef_ps(there, y, x);
  }
  // Half of a bfloat16's last place more, so that cutting rounds (half up; NaN keeps).
  static HEXAD_INLINE __m512i raise(__m512 x) {
    return _mm512_add_epi32((__m512i)x, _mm512_set1_epi32(0x8000));
  }
  static HEXAD_INLINE void store_pairs(float* to, __m512i evens, __m512i odds) {
    const __m512i low = (__m512i)((__v16su)evens >> 16);
    store(to, (vf)_mm512_mask_mov_epi16(low, 0xaaaaaaaa, odds));
  }

  // P and dS of a square, two rows at a time.
  template <bool kHides, bool kCapped>
  HEXAD_APART void weigh(int64_t strip, int64_t panel) {
    const vf scale = set1(kCapped ? kLog2E : a_.scale * kLog2E);
    const float* minus_lse = minus_lse_ + strip * kSide;
    alignas(64) float add[kSide];
    for (int64_t half = 0; half < 2; ++half) {
      const float* scores = scores_ + half * 512;
      const float* products = products_ + half * 512;
      float* p = p_ + (panel * kStrips + strip) * (kSquare / 2) + half * 256;
      float* ds = ds_ + (panel * kStrips + strip) * (kSquare / 2) + half * 256;
      float* along = along_ + ((2 * strip + half) * kPanels + panel) * 256;
      for (int64_t i = 0; i < kLanes; i += 2) {
        __m512i w[2][2], g[2][2];
#pragma GCC unroll 2
        for (int e = 0; e < 2; ++e) {
          const int64_t r = half * kLanes + i + e;
          const uint32_t there = kHides ? seen(strip * kSide + r, panel * kSide, add) : ~0u;
          const vf less = set1(minus_lse[r]);
#pragma GCC unroll 2
          for (int m = 0; m < 2; ++m) {
            const int64_t at = m * 256 + (i + e) * kLanes;
            const __mmask16 mine = __mmask16(there >> 16 * m);
            vf s = load(scores + at), slope = load(products + at);
            if (kCapped) {
              const vf t = tanh(s * set1(a_.scale) / set1(a_.softcap));
              s = set1(a_.softcap) * t;
              slope = slope * fma(-t, t, set1(1.f));
            }
            vf x = fma(s, scale, less);
            if (kHides && a_.mask) x = fma(load(add + 16 * m), set1(kLog2E), x);
            const __m512 weight = exp2(mine, (__m512)x);
            const __m512 gradient = _mm512_maskz_mul_ps(mine, weight, (__m512)slope);
            w[e][m] = raise(weight), g[e][m] = raise(gradient);
          }
        }
#pragma GCC unroll 2
        for (int m = 0; m < 2; ++m) {
          store_pairs(p + i * 16 + m * kLanes, w[0][m], w[1][m]);
          store_pairs(ds + i * 16 + m * kLanes, g[0][m], g[1][m]);
          store_pairs(along + (i + m) * kLanes, g[m][0], g[m][1]);
        }
      }
    }
  }

  // Rows of 16 units of 2, of which `keep` has those that stay.
  static HEXAD_APART void keep_units(float* to, const Tiled& from, int64_t step, int64_t half,
                                     __m512i keep) {
    const char* p = from.at + step * from.step + half * from.half;
    for (int i = 0; i < 16; ++i)
      store(to + i * kLanes, (vf)_mm512_and_si512(_mm512_loadu_si512(p + i * from.row), keep));
  }
  static __m512i pair_masks(uint32_t even, uint32_t odd) {
    const __m512i high = _mm512_set1_epi32(int32_t(0xffff0000));
    return _mm512_or_si512(_mm512_maskz_set1_epi32(__mmask16(even), 0xffff),
                           _mm512_maskz_mov_epi32(__mmask16(odd), high));
  }

  // The products of visit() in which a hidden pair gives nothing, whatever it holds: a key or a row
  // at a time, against a factor cleared of what that one does not see.
  HEXAD_APART void visit_carefully(bool for_keys, float* grad_q, const int* begin, const int* end,
                                   int strips) {
    alignas(64) float sums[kSquare], clean[kPanels * kSquare / 2], add[kSide];
    uint32_t bits[kQueries];
    for (int64_t n = 0; for_keys && n < kPanels; ++n) {
      int from, upto;
      find_strips(n, begin, end, strips, &from, &upto);
      for (int64_t r = from * kSide; r < upto * kSide; ++r) bits[r] = seen(r, n * kSide, add);
      for (int64_t j = 0; from < upto && j < kSide; ++j) {
        const auto one = [&](float* total, const float* turned, const float* w, int64_t elements) {
          for (int64_t m = 0; m < elements / kSide; ++m) {
            for (int s = from; s < upto; ++s) {
              uint32_t even = 0, odd = 0;
              for (int i = 0; i < 16; ++i) {
                even |= (bits[s * kSide + 2 * i] >> j & 1) << i;
                odd |= (bits[s * kSide + 2 * i + 1] >> j & 1) << i;
              }
              for (int half = 0; half < 2; ++half)
                keep_units(clean + (half * kStrips + s) * 256, turned_tiles(turned, m), s, half,
                           pair_masks(even, odd));
            }
            float* to = key_square(total, m, n);
            std::copy_n(to, kSquare, sums);
            settle();
            add_square(sums, turned_tiles(clean, 0).from(from), weights(w, n).from(from),
                       upto - from);
            for (int64_t i = 0; i < kSide; ++i) to[place(i, j)] = sums[place(i, j)];
          }
        };
        one(grad_v_, turned_g_, p_, dv_);
        one(grad_k_, turned_q_, ds_, d_);
      }
    }
    for (int64_t r = 0; grad_q && r < rows_; ++r) {
      const int64_t s = r / kSide, i = r % kSide;
      for (int64_t m = 0; begin[s] < end[s] && m < d_ / kSide; ++m) {
        // Of a panel of 32 keys unit u holds keys u and 16 + u.
        const float* rows = rows_k_ + m * (kKeys / 2) * kSide;
        for (int64_t n = begin[s]; n < end[s]; ++n) {
          const uint32_t sees = seen(r, n * kSide, add);
          for (int64_t u = 16 * n; u < 16 * n + 16; ++u) {
            const __m512i keep = _mm512_set1_epi32((sees >> u % 16 & 1 ? 0xffff : 0) |
                                                   (sees >> (16 + u % 16) & 1 ? ~0xffff : 0));
            for (int half = 0; half < 2; ++half)
              store(
                  clean + u * kSide + half * kLanes,
                  (vf)_mm512_and_si512(_mm512_loadu_si512(rows + u * kSide + half * kLanes), keep));
          }
        }
        float* to = grad_q_square(grad_q, s, m);
        std::copy_n(to, kSquare, sums);
        settle();
        add_square(sums, along_tiles(s).from(begin[s]), panel_tiles(clean).from(begin[s]),
                   end[s] - begin[s]);
        for (int64_t half = 0; half < 2; ++half)
          std::copy_n(sums + place(i, half * 16), kLanes, to + place(i, half * 16));
      }
    }
  }

  const int64_t d_, dv_;  // head dimensions, padded
  float* room_;
  // Factors of the products: keys, values and keys again; queries and gradients, both twice.
  float *const turned_k_, *const turned_v_, *const rows_k_;
  float *const grad_k_, *const grad_v_;
  float *const turned_q_, *const turned_g_, *const rows_q_, *const rows_g_;
  float *const scores_, *const products_;  // a square each
  float *const minus_delta_, *const minus_lse_;
  float *const p_, *const ds_, *const along_;
  Tiled left_q_, left_g_;
};

}  // namespace
}  // namespace hexad
#endif

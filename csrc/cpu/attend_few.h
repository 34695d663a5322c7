// The core of decode: a block of query rows over the keys of one
// head. Keys come in tiles of 64, counted from key 0. Within a row everything happens in one order:
// a score sums over the head dimension from 0 up, the softmax is carried tile by tile, the output
// sums over keys from the first up. So a row's bits depend on its own visible keys only, not on the
// other rows of its block, nor on where the keys lie.
#pragma once

#include <algorithm>

#include "cpu/math.h"

namespace hexad {
namespace {

constexpr int kTile = 64;   // keys in a tile
constexpr int kBlock = 48;  // query rows in a block, at most
constexpr int kStep = 6;    // query rows that share registers
// Room for a block's queries, and for its sums: one row's at least, hence the doors' limit.
constexpr int64_t kRowFloats = 3840;
constexpr int64_t kChunk = 64;  // of a head dimension, between registers and scratch

// Keys and values of one head: contiguous (pages null), or in pages of a cache.
template <class T>
struct Keys {
  const T *k, *v;
  int64_t k_key, v_key;  // strides from key to key
  const int32_t* pages;
  int64_t pages_step, page, k_page, v_page;

  // Where keys first .. first + n - 1 lie in `p` (k or v).
  void locate(const T* p, int64_t key_stride, int64_t page_stride, int64_t first, int64_t n,
              const T** out) const {
    if (!pages) {
      for (int64_t j = 0; j < n; ++j) out[j] = p + (first + j) * key_stride;
      return;
    }
    int64_t index = first / page, slot = first % page;
    for (int64_t j = 0; j < n; ++index, slot = 0) {
      const T* here = p + pages[index * pages_step] * page_stride;
      for (; slot < page && j < n; ++slot, ++j) out[j] = here + slot * key_stride;
    }
  }
};

enum class MaskKind { none, boolean, f32, bf16 };

struct Mask {
  MaskKind kind;
  const void* data;
  int64_t head, row, key;  // strides
};

// Rows r = i * group + g of one key head: query i of head g of the group.
template <class T>
struct Job {
  const T* q;
  int64_t q_head, q_row;
  T* out;
  int64_t out_head, out_row;
  float* lse;
  int64_t lse_head, lse_row;
  int64_t group;
  Keys<T> keys;
  int64_t count;                // keys
  int64_t offset, left, right;  // query i sees keys i + offset - left .. i + offset + right
  Mask mask;                    // of the group's first head
  int64_t head_dim, value_dim;
  float scale, softcap;  // softcap 0: none
};

HEXAD_INLINE int64_t padded(int64_t n) {
  return (n + kLanes - 1) / kLanes * kLanes;
}

// Rows that fit a block of scratch.
HEXAD_INLINE int64_t block_rows(int64_t head_dim, int64_t value_dim) {
  const int64_t n = std::min<int64_t>(
      kBlock, kRowFloats / std::max<int64_t>(1, std::max(padded(head_dim), padded(value_dim))));
  return n > kStep ? n / kStep * kStep : std::max<int64_t>(n, 1);
}

template <class T>
HEXAD_INLINE vf load_upto(const T* p, int64_t n) {
  return n >= kLanes ? load(p) : load_first(p, n);
}

// c[r] = c[r] * factor[r] + sum over k of a[r][k] * rows.row(k), k in order, over NV registers.
template <int MR, int NV, class Rows>
HEXAD_INLINE void accumulate(float* c, int64_t c_step, const float* factor, const float* a,
                             int64_t a_step, const Rows& rows, int64_t begin, int64_t end) {
  reg sum[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n)
      sum[r][n] =
          factor ? load_reg(c + r * c_step + n * kRegLanes) * set1_reg(factor[r]) : set1_reg(0.f);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t k = rows.index(i);
    const float* row = rows.row(k);
    reg b[NV];
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) b[n] = load_reg(row + n * kRegLanes);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const reg x = set1_reg(a[r * a_step + k]);
#pragma GCC unroll 8
      for (int n = 0; n < NV; ++n) sum[r][n] = fma(x, b[n], sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < NV; ++n) store_reg(c + r * c_step + n * kRegLanes, sum[r][n]);
}

// Where the k-th row of the right factor starts: at a fixed step, at listed places, at listed
// places for a list of k only.
struct Stepped {
  const float* p;
  int64_t step;
  HEXAD_INLINE int64_t index(int64_t i) const { return i; }
  HEXAD_INLINE const float* row(int64_t k) const { return p + k * step; }
  HEXAD_INLINE Stepped at(int64_t column) const { return {p + column, step}; }
};
struct Listed {
  const float* const* p;
  int64_t column;
  HEXAD_INLINE int64_t index(int64_t i) const { return i; }
  HEXAD_INLINE const float* row(int64_t k) const { return p[k] + column; }
  HEXAD_INLINE Listed at(int64_t c) const { return {p, column + c}; }
};
struct Picked {
  const float* const* p;
  int64_t column;
  const uint8_t* list;
  HEXAD_INLINE int64_t index(int64_t i) const { return list[i]; }
  HEXAD_INLINE const float* row(int64_t k) const { return p[k] + column; }
  HEXAD_INLINE Picked at(int64_t c) const { return {p, column + c, list}; }
};

// All columns (a multiple of 16), in strips as wide as the registers allow.
template <int MR, class Rows>
void strips(float* c, int64_t c_step, const float* factor, const float* a, int64_t a_step,
            const Rows& rows, int64_t begin, int64_t end, int64_t columns) {
  constexpr int widest = MR == 1 ? 4 * kLanes / kRegLanes : 4;
  constexpr int NV = std::max(1, std::min(widest, kAccumulators / MR));
  constexpr int rest = kLanes / kRegLanes;
  int64_t at = 0;
  for (; at + NV * kRegLanes <= columns; at += NV * kRegLanes)
    accumulate<MR, NV>(c + at, c_step, factor, a, a_step, rows.at(at), begin, end);
  if constexpr (NV > rest)
    for (; at + rest * kRegLanes <= columns; at += rest * kRegLanes)
      accumulate<MR, rest>(c + at, c_step, factor, a, a_step, rows.at(at), begin, end);
  for (; at < columns; at += kRegLanes)
    accumulate<MR, 1>(c + at, c_step, factor, a, a_step, rows.at(at), begin, end);
}

template <class Rows>
void multiply(int64_t count, float* c, int64_t c_step, const float* factor, const float* a,
              int64_t a_step, const Rows& rows, int64_t begin, int64_t end, int64_t columns) {
  switch (count) {
    case 1:
      return strips<1>(c, c_step, factor, a, a_step, rows, begin, end, columns);
    case 2:
      return strips<2>(c, c_step, factor, a, a_step, rows, begin, end, columns);
    case 3:
      return strips<3>(c, c_step, factor, a, a_step, rows, begin, end, columns);
    case 4:
      return strips<4>(c, c_step, factor, a, a_step, rows, begin, end, columns);
    case 5:
      return strips<5>(c, c_step, factor, a, a_step, rows, begin, end, columns);
    default:
      return strips<6>(c, c_step, factor, a, a_step, rows, begin, end, columns);
  }
}

float exp_of(float x) {
  float lanes[kLanes];
  store(lanes, exp_falling(set1(x)));
  return lanes[0];
}

template <class T>
class Block {
 public:
  Block(const Job<T>& job, int64_t begin, int64_t end)
      : job_(job),
        begin_(begin),
        rows_(end - begin),
        q_step_(padded(job.head_dim)),
        o_step_(padded(job.value_dim)) {}

  void run() {
    int64_t first = INT64_MAX, last = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t position = (begin_ + r) / job_.group + job_.offset;
      lo_[r] = job_.left < 0 ? 0 : std::max<int64_t>(0, position - job_.left);
      hi_[r] = job_.right < 0 ? job_.count : std::min(job_.count, position + job_.right + 1);
      if (lo_[r] < hi_[r]) first = std::min(first, lo_[r]), last = std::max(last, hi_[r]);
      best_[r] = -__builtin_inff();
      total_[r] = 0;
    }
    std::fill(out_, out_ + rows_ * o_step_, 0.f);
    if (first < last) {
      take_queries();
      for (int64_t base = first / kTile * kTile; base < last; base += kTile)
        tile(base, std::max<int64_t>(first - base, 0), std::min<int64_t>(last - base, kTile));
    }
    finish();
  }

 private:
  void take_queries() {
    const vf scale = set1(job_.scale);
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t i = (begin_ + r) / job_.group, g = (begin_ + r) % job_.group;
      const T* q = job_.q + g * job_.q_head + i * job_.q_row;
      for (int64_t d = 0; d < job_.head_dim; d += kLanes)
        store(q_ + r * q_step_ + d, load_upto(q + d, job_.head_dim - d) * scale);
    }
  }

  // Keys base + [begin, end) for whichever rows see them.
  void tile(int64_t base, int64_t begin, int64_t end) {
    bool seen = false;
    for (int64_t r = 0; r < rows_; ++r) {
      from_[r] = int(std::clamp<int64_t>(lo_[r] - base, 0, kTile));
      upto_[r] = int(std::clamp<int64_t>(hi_[r] - base, 0, kTile));
      seen = seen || from_[r] < upto_[r];
    }
    if (!seen) return;
    scores(base, begin, end);
    for (int64_t r = 0; r < rows_; ++r) soften(base, r);
    values(base, begin, end);
  }

  // Dimensions [at, at + 16) of sixteen keys, of which n are there, with a lane per key.
  static void turn(const T* const* k, int64_t at, int64_t n, float* to) {
    vf square[kLanes];
    if (n >= kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(k[i] + at);
    } else {
      for (int i = 0; i < kLanes; ++i) square[i] = load_first(k[i] + at, n);
    }
    transpose(square);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(to + i * kTile, square[i]);
  }

  bool step_sees(int64_t r, int64_t n) const {
    for (int64_t i = r; i < r + n; ++i)
      if (from_[i] < upto_[i]) return true;
    return false;
  }

  // p_[r][key] = <q_r, k_key>.
  void scores(int64_t base, int64_t begin, int64_t end) {
    const T* k[kTile];
    const Keys<T>& keys = job_.keys;
    keys.locate(keys.k, keys.k_key, keys.k_page, base + begin, end - begin, k + begin);
    // Keys that no row sees: any readable ones do, their scores are hidden.
    std::fill(k, k + begin, k[begin]);
    std::fill(k + end, k + kTile, k[begin]);
    static const float ones[kStep] = {1, 1, 1, 1, 1, 1};
    for (int64_t at = 0; at < job_.head_dim; at += kChunk) {
      const int64_t dims = std::min(kChunk, job_.head_dim - at);
      for (int64_t j = 0; j < kTile; j += kLanes)
        for (int64_t d = 0; d < dims; d += kLanes)
          turn(k + j, at + d, dims - d, kv_ + d * kTile + j);
      for (int64_t r = 0; r < rows_; r += kStep) {
        const int64_t n = std::min<int64_t>(kStep, rows_ - r);
        if (step_sees(r, n))
          multiply(n, p_ + r * kTile, kTile, at ? ones : nullptr, q_ + r * q_step_ + at, q_step_,
                   Stepped{kv_, kTile}, 0, dims, kTile);
      }
    }
  }

  // The row's mask over the tile as something to add; -inf hides.
  void read_mask(int64_t base, int64_t r, float* add) const {
    const Mask& m = job_.mask;
    const int64_t i = (begin_ + r) / job_.group, g = (begin_ + r) % job_.group;
    const int64_t at = g * m.head + i * m.row + base * m.key;
    const float hidden = -__builtin_inff();
    for (int j = from_[r]; j < upto_[r]; ++j) {
      const int64_t e = at + j * m.key;
      if (m.kind == MaskKind::boolean)
        add[j] = static_cast<const uint8_t*>(m.data)[e] ? 0.f : hidden;
      else if (m.kind == MaskKind::f32)
        add[j] = static_cast<const float*>(m.data)[e];
      else
        add[j] = to_float(static_cast<const bf16*>(m.data)[e]);
    }
  }

  // Scores become weights exp(s - m).
  void soften(int64_t base, int64_t r) {
    alpha_[r] = 1;
    sparse_[r] = false;
    if (from_[r] >= upto_[r]) return;
    vf s[kTile / kLanes];
    float* p = p_ + r * kTile;
#pragma GCC unroll 4
    for (int n = 0; n < kTile / kLanes; ++n) {
      s[n] = load(p + n * kLanes);
      if (job_.softcap > 0) s[n] = set1(job_.softcap) * tanh(s[n] / set1(job_.softcap));
    }
    if (job_.mask.kind == MaskKind::none && from_[r] == 0 && upto_[r] == kTile)
      return weights(r, s, [](int, vf w) { return w; });
    vi hide[kTile / kLanes];
    find_hidden(base, r, s, hide);
    const vf hidden = set1(-__builtin_inff());
    for (int n = 0; n < kTile / kLanes; ++n) s[n] = select(hide[n], hidden, s[n]);
    // A hidden key's weight is -0, which tells it from one that underflows.
    weights(r, s, [&](int n, vf w) { return select(hide[n], set1(-0.f), w); });
  }

  // Which keys of the tile row r does not see; a mask that adds is added.
  void find_hidden(int64_t base, int64_t r, vf* s, vi* hide) {
    const bool masked = job_.mask.kind != MaskKind::none;
    alignas(64) float add[kTile];
    if (masked) read_mask(base, r, add);
    vi any = set1i(0);
    for (int n = 0; n < kTile / kLanes; ++n) {
      const vi lane = iota() + set1i(n * kLanes);
      const vi inside = less_int(lane, set1i(upto_[r])) & less_int(set1i(from_[r] - 1), lane);
      hide[n] = inside ^ set1i(-1);
      if (!masked) continue;
      const vf bias = load(add + n * kLanes);
      const vi off = equal(bias, set1(-__builtin_inff()));
      any = any | (off & inside);
      hide[n] = hide[n] | off;
      s[n] = s[n] + bias;
    }
    sparse_[r] = masked && any_lane(any);
  }

  template <class Keep>
  HEXAD_INLINE void weights(int64_t r, vf* s, const Keep& keep) {
    const float old = best_[r];
    const float now = std::max(old, max_across(larger(larger(s[0], s[1]), larger(s[2], s[3]))));
    const vf m = set1(now == -__builtin_inff() ? 0.f : now);
#pragma GCC unroll 4
    for (int n = 0; n < kTile / kLanes; ++n) {
      s[n] = keep(n, exp_falling(s[n] - m));
      store(p_ + r * kTile + n * kLanes, s[n]);
    }
    if (now != old) {
      best_[r] = now;
      alpha_[r] = exp_of(old - now);
    }
    total_[r] = total_[r] * alpha_[r] + sum((s[0] + s[1]) + (s[2] + s[3]));
  }

  static bool any_lane(vi v) {
    int32_t lanes[kLanes], any = 0;
    store(lanes, v);
    for (int i = 0; i < kLanes; ++i) any |= lanes[i];
    return any != 0;
  }

  // out_[r] = out_[r] * alpha + sum over visible keys of weight * value.
  void values(int64_t base, int64_t begin, int64_t end) {
    const T* v[kTile];
    const Keys<T>& keys = job_.keys;
    keys.locate(keys.v, keys.v_key, keys.v_page, base + begin, end - begin, v + begin);
    const float* rows[kTile];
    if (sizeof(T) == sizeof(float) && job_.value_dim % kLanes == 0) {
      for (int64_t j = begin; j < end; ++j) rows[j] = reinterpret_cast<const float*>(v[j]);
      return weigh(rows, 0, job_.value_dim);
    }
    for (int64_t at = 0; at < job_.value_dim; at += kChunk) {
      const int64_t dims = std::min(kChunk, job_.value_dim - at);
      for (int64_t j = begin; j < end; ++j) {
        rows[j] = kv_ + j * kChunk;
        for (int64_t d = 0; d < dims; d += kLanes)
          store(kv_ + j * kChunk + d, load_upto(v[j] + at + d, dims - d));
      }
      weigh(rows, at, padded(dims));
    }
  }

  // Rows of a step go together over the keys that all of them see, alone over the rest.
  void weigh(const float* const* v, int64_t at, int64_t columns) {
    for (int64_t r = 0; r < rows_; r += kStep) {
      const int64_t n = std::min<int64_t>(kStep, rows_ - r);
      int64_t from = 0, upto = kTile;
      bool together = n > 1;
      for (int64_t i = r; i < r + n; ++i) {
        from = std::max<int64_t>(from, from_[i]);
        upto = std::min<int64_t>(upto, upto_[i]);
        together = together && !sparse_[i];
      }
      if (!together || from >= upto) {
        for (int64_t i = r; i < r + n; ++i) alone(i, v, at, columns, from_[i], upto_[i], alpha_[i]);
        continue;
      }
      float factor[kStep];
      for (int64_t i = 0; i < n; ++i) {
        factor[i] = alpha_[r + i];
        if (from_[r + i] < from) {
          alone(r + i, v, at, columns, from_[r + i], from, factor[i]);
          factor[i] = 1;
        }
      }
      multiply(n, out_ + r * o_step_ + at, o_step_, factor, p_ + r * kTile, kTile, Listed{v, 0},
               from, upto, columns);
      for (int64_t i = r; i < r + n; ++i)
        if (upto < upto_[i]) alone(i, v, at, columns, upto, upto_[i], 1);
    }
  }

  void alone(int64_t r, const float* const* v, int64_t at, int64_t columns, int64_t from,
             int64_t upto, float factor) {
    if (from >= upto) return;
    const float* p = p_ + r * kTile;
    float* out = out_ + r * o_step_ + at;
    if (!sparse_[r])
      return multiply(1, out, o_step_, &factor, p, kTile, Listed{v, 0}, from, upto, columns);
    uint8_t list[kTile];
    int64_t n = 0;
    for (int64_t j = from; j < upto; ++j) {
      list[n] = uint8_t(j);
      n += !__builtin_signbit(p[j]);
    }
    multiply(1, out, o_step_, &factor, p, kTile, Picked{v, 0, list}, 0, n, columns);
  }

  void finish() {
    for (int64_t r = 0; r < rows_; r += kLanes) {
      const int64_t n = std::min<int64_t>(kLanes, rows_ - r);
      float lse[kLanes];
      store(lse, load_first(best_ + r, n) + log(load_first(total_ + r, n, 1.f)));
      for (int64_t j = 0; j < n; ++j) write(r + j, lse[j]);
    }
  }

  void write(int64_t r, float lse) {
    const int64_t i = (begin_ + r) / job_.group, g = (begin_ + r) % job_.group;
    const bool nothing = total_[r] == 0;
    if (job_.lse)
      job_.lse[g * job_.lse_head + i * job_.lse_row] = nothing ? -__builtin_inff() : lse;
    const vf total = set1(nothing ? 1.f : total_[r]);
    T* out = job_.out + g * job_.out_head + i * job_.out_row;
    int64_t d = 0;
    for (; d + kLanes <= job_.value_dim; d += kLanes)
      store(out + d, load(out_ + r * o_step_ + d) / total);
    if (d < job_.value_dim)
      store_first(out + d, load(out_ + r * o_step_ + d) / total, job_.value_dim - d);
  }

  const Job<T>& job_;
  const int64_t begin_, rows_, q_step_, o_step_;
  int64_t last_;                          // one past the last key that any row sees
  alignas(64) float q_[kRowFloats];       // queries, scaled
  alignas(64) float out_[kRowFloats];     // sums, not yet divided
  alignas(64) float p_[kBlock * kTile];   // scores, then weights
  alignas(64) float kv_[kTile * kChunk];  // a tile of keys, transposed; then one of values
  float best_[kBlock], total_[kBlock], alpha_[kBlock];
  int64_t lo_[kBlock], hi_[kBlock];  // keys that a row sees
  int from_[kBlock], upto_[kBlock];  // the same within the tile
  bool sparse_[kBlock];              // the tile has keys between them that the mask hides
};

// Rows [begin, end) of a job; at most block_rows of them.
template <class T>
void attend(const Job<T>& job, int64_t begin, int64_t end) {
  Block<T>(job, begin, end).run();
}

}  // namespace
}  // namespace hexad

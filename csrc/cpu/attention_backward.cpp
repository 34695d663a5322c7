// The gradients of attention, tile by tile. P comes again from q, k and lse, so nothing of the size
// rows x keys is held:
//   P = exp(s - lse), dS = P * (grad_out v^T - delta) * ds/d<q, k>, delta = <grad_out, out> -
//   grad_lse grad_v = P^T grad_out, grad_k = dS^T q, grad_q = dS k
// A task takes a key head: its keys in tiles, and for each the queries that see them, so that each
// product is made once. With fewer heads than threads, tiles of keys (for grad_k, grad_v) and tiles
// of queries (for grad_q) are tasks of their own, which makes the scores twice. Either way a
// gradient is a sum over the same tiles in order (grad_q: of keys; the others: of the group's heads
// and their queries), so the bits are the same.
#include "op/attention_backward.h"

#include "cpu/gradient_amx.h"
#include "cpu/gradient_tile.h"
#include "cpu/parallel.h"
#include "cpu/plain.h"

namespace hexad {
namespace {

template <class T, class Tile>
class Gradient {
 public:
  static constexpr int kQueries = Tile::kQueries, kKeys = Tile::kKeys;

  Gradient(const AttentionBackwardArgs& a, float* room)
      : a_(a), group_(a.heads / a.kv_heads), tile_(a, room), columns_(tile_.columns()) {}

  // All gradients of one key head.
  void whole(int64_t b, int64_t h) {
    const bool in_place = Tile::in_place(a_);
    const int64_t step = in_place ? a_.grad_q_stride[2] : columns_;
    const int64_t room = Tile::padded(a_.rows);
    const auto sums = [&](int64_t g) {
      return in_place ? reinterpret_cast<float*>(grad_q(b, h * group_ + g, 0))
                      : tile_.rest() + g * room * columns_;
    };
    for (int64_t g = 0; g < group_; ++g)
      for (int64_t i = 0; i < (in_place ? a_.rows : room); ++i)
        std::fill_n(sums(g) + i * step, columns_, 0.f);
    for (int64_t base = 0; base < a_.keys; base += kKeys)
      keys(b, h, base, [&](int64_t g, int64_t first) {
        tile_.template visit<true, true>(sums(g) + first * step, step);
      });
    for (int64_t g = 0; !in_place && g < group_; ++g)
      for (int64_t i = 0; i < a_.rows; i += kQueries)
        write_queries(b, h * group_ + g, i, sums(g) + i * step);
  }

  // grad_k and grad_v of a tile of keys.
  void some_keys(int64_t b, int64_t h, int64_t base) {
    keys(b, h, base, [&](int64_t, int64_t) { tile_.template visit<true, false>(nullptr, 0); });
  }

  // grad_q of a tile of queries.
  void some_queries(int64_t b, int64_t head, int64_t first) {
    float* sums = tile_.rest();
    std::fill_n(sums, kQueries * columns_, 0.f);
    tile_.find_head(b, head);
    bool taken = false;
    for (int64_t base = 0; base < a_.keys; base += kKeys) {
      if (!tile_.sees(first, base)) continue;
      if (!taken) tile_.take_queries(first);
      taken = true;
      tile_.take_keys(b, head / group_, base);
      tile_.template visit<false, true>(sums, columns_);
    }
    write_queries(b, head, first, sums);
  }

 private:
  T* grad_q(int64_t b, int64_t head, int64_t i) const {
    return static_cast<T*>(a_.grad_q) + b * a_.grad_q_stride[0] + head * a_.grad_q_stride[1] +
           i * a_.grad_q_stride[2];
  }

  void write_queries(int64_t b, int64_t head, int64_t first, const float* sums) {
    tile_.write_queries(grad_q(b, head, first), a_.grad_q_stride[2], sums,
                        std::min<int64_t>(kQueries, a_.rows - first));
  }

  // visit(head of the group, first row) for each tile of queries that sees the keys.
  template <class Visit>
  void keys(int64_t b, int64_t h, int64_t base, const Visit& visit) {
    tile_.clear_keys();
    bool taken = false;
    for (int64_t g = 0; g < group_; ++g) {
      tile_.find_head(b, h * group_ + g);
      for (int64_t first = 0; first < a_.rows; first += kQueries) {
        if (!tile_.sees(first, base)) continue;
        if (!taken) tile_.take_keys(b, h, base);
        taken = true;
        tile_.take_queries(first);
        visit(g, first);
      }
    }
    tile_.write_keys(b, h, base);
  }

  const AttentionBackwardArgs& a_;
  const int64_t group_;
  Tile tile_;
  const int64_t columns_;
};

// <grad_out, out> - grad_lse of every row.
template <class T>
void deltas(const AttentionBackwardArgs& a) {
  float* delta = a.workspace + a.slots * a.room;
  parallel_for(a.batch * a.heads * a.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t i = t % a.rows, h = t / a.rows % a.heads, b = t / a.rows / a.heads;
      const T* g = static_cast<const T*>(a.grad_out) + b * a.grad_out_stride[0] +
                   h * a.grad_out_stride[1] + i * a.grad_out_stride[2];
      const T* o = static_cast<const T*>(a.out) + b * a.out_stride[0] + h * a.out_stride[1] +
                   i * a.out_stride[2];
      vf dot = zero();
      for (int64_t d = 0; d < a.value_dim; d += kLanes)
        dot = fma(load_some(g + d, a.value_dim - d), load_some(o + d, a.value_dim - d), dot);
      delta[t] = sum(dot);
      if (a.grad_lse)
        delta[t] -= a.grad_lse[b * a.grad_lse_stride[0] + h * a.grad_lse_stride[1] +
                               i * a.grad_lse_stride[2]];
    }
  });
}

// body(gradient, task) for each task; a slot of the workspace is one task's at a time.
template <class T, class Tile, class Body>
void tasks(const AttentionBackwardArgs& a, int64_t n, const Body& body) {
  int64_t next = 0;
  parallel_for(std::min(n, a.slots), 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      Gradient<T, Tile> gradient(a, a.workspace + slot * a.room);
      for (int64_t t; (t = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < n;) body(gradient, t);
    }
  });
}

template <class T, class Tile>
void run(const AttentionBackwardArgs& a) {
  using G = Gradient<T, Tile>;
  deltas<T>(a);
  const int64_t heads = a.batch * a.kv_heads;
  if (!a.split)
    return tasks<T, Tile>(a, heads,
                          [&](G& g, int64_t t) { g.whole(t / a.kv_heads, t % a.kv_heads); });
  const int64_t key_tiles = (a.keys + G::kKeys - 1) / G::kKeys;
  const int64_t query_tiles = (a.rows + G::kQueries - 1) / G::kQueries;
  tasks<T, Tile>(a, heads * key_tiles, [&](G& g, int64_t t) {
    const int64_t head = t % heads;
    g.some_keys(head / a.kv_heads, head % a.kv_heads, t / heads * G::kKeys);
  });
  const int64_t rows = a.batch * a.heads;
  tasks<T, Tile>(a, rows * query_tiles, [&](G& g, int64_t t) {
    const int64_t head = t % rows, tile = query_tiles - 1 - t / rows;
    g.some_queries(head / a.heads, head % a.heads, tile * G::kQueries);
  });
}

}  // namespace

namespace HEXAD_ISA {

void attention_backward(const AttentionBackwardArgs& a) {
#if HEXAD_TILES
  using Bfloat = GradientAmx;
#elif HEXAD_PAIRS
  using Bfloat = GradientTile<bf16, Pairs>;
#else
  using Bfloat = GradientTile<bf16, Floats>;
#endif
#if HEXAD_SHARES
  a.bf16 ? run<bf16, Bfloat>(a) : HEXAD_PLAIN::attention_backward(a);
#else
  a.bf16 ? run<bf16, Bfloat>(a) : run<float, GradientTile<float, Floats> >(a);
#endif
}

}  // namespace HEXAD_ISA
}  // namespace hexad

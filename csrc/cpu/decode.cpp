// One query per sequence: a task is a sequence and a head of its cache, whose query heads go
// together. Longer sequences come first, so that no thread is left with one at the end.
#include "op/decode.h"

#include "cpu/decode_amx.h"
#include "cpu/decode_rows.h"
#include "cpu/parallel.h"
#include "cpu/plain.h"

namespace hexad {
namespace {

constexpr int64_t kSorted = 1024;  // sequences that are put in order

// Sequences by falling length; ties and the order do not matter to the result.
void longest_first(const DecodeArgs& a, int16_t* order) {
  for (int64_t b = 0; b < a.batch; ++b) {
    const int32_t length = a.lengths[b * a.lengths_stride];
    int64_t at = b;
    for (; at > 0 && a.lengths[order[at - 1] * a.lengths_stride] < length; --at)
      order[at] = order[at - 1];
    order[at] = int16_t(b);
  }
}

template <class T, class C>
Group<T, C> group_of(const DecodeArgs& a, int64_t b, int64_t h) {
  const int64_t head = h * (a.heads / a.kv_heads), length = a.lengths[b * a.lengths_stride];
  Group<T, C> g{};
  g.q = static_cast<const T*>(a.q) + b * a.q_stride[0] + head * a.q_stride[1];
  g.out = static_cast<T*>(a.out) + b * a.out_stride[0] + head * a.out_stride[1];
  g.lse = a.lse + b * a.lse_stride[0] + head * a.lse_stride[1];
  g.q_head = a.q_stride[1], g.out_head = a.out_stride[1], g.lse_head = a.lse_stride[1];
  const auto lane = [&](auto* p, const int64_t* step) {
    using Element = std::remove_pointer_t<decltype(p)>;
    return Lane<std::remove_const_t<Element>>{p + h * step[1] + (a.table ? 0 : b * step[0]),
                                              step[0], step[2]};
  };
  g.cache.k = lane(static_cast<const C*>(a.k), a.k_stride);
  g.cache.v = lane(static_cast<const C*>(a.v), a.v_stride);
  if (a.int8) {
    g.cache.k_scale = lane(a.k_scale, a.k_scale_stride);
    g.cache.v_scale = lane(a.v_scale, a.v_scale_stride);
  }
  if (a.slopes) g.slopes = a.slopes + head * a.slopes_stride, g.slopes_head = a.slopes_stride;
  if (a.sinks) g.sinks = a.sinks + head * a.sinks_stride, g.sinks_head = a.sinks_stride;
  if (a.table) g.cache.table = a.table + b * a.table_stride[0];
  g.cache.table_step = a.table_stride[1], g.cache.page = a.page;
  g.lo = a.left < 0 ? 0 : std::max<int64_t>(0, length - 1 - a.left), g.hi = length;
  g.head_dim = a.head_dim, g.value_dim = a.value_dim;
  g.scale = a.scale, g.softcap = a.softcap;
  return g;
}

// What does a block of query heads, and how many it takes.
template <class T, class C>
struct Worker {
  using Type = Rows<T, C>;
  static int64_t block(int64_t head_dim, int64_t value_dim) {
    return block_rows(head_dim, value_dim);
  }
};
#if HEXAD_TILES
template <>
struct Worker<bf16, bf16> {
  using Type = TileRows;
  static int64_t block(int64_t head_dim, int64_t value_dim) {
    return TileRows::block(head_dim, value_dim);
  }
};
#endif

// Tasks by number, claimed one by one; the next is claimed while the last tile of one is at work,
// so that its first tile is on the way.
template <class T, class C>
struct Tasks {
  const DecodeArgs& a;
  const int16_t* order;  // null: sequences as they come
  int64_t group, block, blocks, count;
  int64_t next;

  int64_t claim() { return __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED); }

  Group<T, C> at(int64_t t) const {
    const int64_t i = t / blocks / a.kv_heads;
    return group_of<T, C>(a, order ? order[i] : i, t / blocks % a.kv_heads);
  }

  void work() {
    for (int64_t t = claim(); t < count;) {
      int64_t after = -1;
      const Group<T, C> g = at(t);
      const int64_t begin = t % blocks * block;
      typename Worker<T, C>::Type rows(g, begin, std::min(begin + block, group));
      rows.run([&](Tile<C>& tile) {
        after = claim();
        if (after >= count) return false;
        const Group<T, C> then = at(after);
        if (then.lo < then.hi) tile.locate(then.cache, then.lo / kTile * kTile, then.lo, then.hi);
        return then.lo < then.hi;
      });
      t = after < 0 ? claim() : after;
    }
  }
};

template <class T, class C>
void run(const DecodeArgs& a) {
  const int64_t group = a.heads / a.kv_heads, block = Worker<T, C>::block(a.head_dim, a.value_dim);
  const int64_t blocks = (group + block - 1) / block;
  int16_t order[kSorted];
  const bool sorted = a.batch > 1 && a.batch <= kSorted;
  if (sorted) longest_first(a, order);
  Tasks<T, C> tasks{a,      sorted ? order : nullptr,      group, block,
                    blocks, a.batch * a.kv_heads * blocks, 0};
  parallel_for(std::min<int64_t>(tasks.count, parallel_threads()), 1,
               [&](int64_t, int64_t) { tasks.work(); });
}

}  // namespace

namespace HEXAD_ISA {

void decode(const DecodeArgs& a) {
#if HEXAD_SHARES
  a.bf16 && !a.int8 ? run<bf16, bf16>(a) : HEXAD_PLAIN::decode(a);
#else
  if (a.int8)
    a.bf16 ? run<bf16, int8_t>(a) : run<float, int8_t>(a);
  else
    a.bf16 ? run<bf16, bf16>(a) : run<float, float>(a);
#endif
}

}  // namespace HEXAD_ISA
}  // namespace hexad

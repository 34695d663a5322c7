// What the doors of the attention family share.
#pragma once

#include "check.h"

namespace hexad {

constexpr int64_t kMaxHeadDim = 3840;  // what a block of scratch holds (cpu/attend.h)

// float32, bfloat16 (or float16, for an op that takes it), one device, unit stride in the last
// dimension.
inline DType require_floats(const hexad_tensor* const* tensors, const char* const* names, int n,
                            bool half = false) {
  const DType dtype = require_float(*tensors[0], names[0], half);
  for (int i = 0; i < n; ++i) {
    require_dtype(*tensors[i], names[i], dtype);
    require_rows(*tensors[i], names[i]);
    require_device(*tensors[i], names[i], *tensors[0]);
  }
  return dtype;
}

inline void require_heads(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t value_dim) {
  HEXAD_REQUIRE(kv_heads > 0 && heads % kv_heads == 0,
                "k: has %lld heads, wants a number that divides q's %lld", (long long)kv_heads,
                (long long)heads);
  HEXAD_REQUIRE(head_dim > 0, "q: has head dimension 0, wants at least 1");
  if (head_dim > kMaxHeadDim || value_dim > kMaxHeadDim)
    fail(HEXAD_UNSUPPORTED, "q: head dimension over %lld", (long long)kMaxHeadDim);
}

// One float32 a query head, or none.
inline const float* per_head(const hexad_tensor* t, const char* name, int64_t heads,
                             const hexad_tensor& like) {
  if (!t) return nullptr;
  require_rank(t, name, 1);
  require_dtype(*t, name, DType::f32);
  require_device(*t, name, like);
  require_size(*t, name, 0, heads);
  require_rows(*t, name);
  return data<float>(*t);
}

// One side of a window, as kernels add it to a position: -1 is no limit, nor is what lies beyond
// any sequence.
inline int64_t reach(int64_t keys) {
  return keys < 0 || keys > 2 * kMostElements ? -1 : keys;
}

// The first n strides.
inline void strides_of(const hexad_tensor& t, int n, int64_t* out) {
  for (int i = 0; i < n; ++i) out[i] = stride(t, i);
}

// Integers that say where keys lie: int32, on the tensors' device.
inline void require_index(const hexad_tensor* t, const char* name, int rank,
                          const hexad_tensor& like) {
  require_rank(t, name, rank);
  require_dtype(*t, name, DType::i32);
  require_device(*t, name, like);
}

// A cache of pages, and that every row's keys [lengths - seen, lengths + added) lie in it (seen <
// 0: from key 0). On the CPU the values are read; elsewhere they are the caller's care.
inline void require_places(const hexad_tensor& cache, const hexad_tensor& lengths,
                           const hexad_tensor* table, int64_t batch, int64_t seen, int64_t added) {
  const int64_t pages = cache.shape[0], page = cache.shape[2];
  require_index(&lengths, "lengths", 1, cache);
  require_size(lengths, "lengths", 0, batch);
  int64_t room = page;
  if (table) {
    require_index(table, "block_table", 2, cache);
    require_size(*table, "block_table", 0, batch);
    HEXAD_REQUIRE(table->shape[1] <= kMostElements / (page ? page : 1),
                  "block_table: has %lld pages a row, more than 2^60 keys",
                  (long long)table->shape[1]);
    room = page * table->shape[1];
  } else {
    HEXAD_REQUIRE(pages == batch,
                  "k_cache: has %lld pages, wants one for each of the %lld rows, or a block_table",
                  (long long)pages, (long long)batch);
  }
  if (lengths.device_type != HEXAD_CPU) return;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = data<int32_t>(lengths)[b * stride(lengths, 0)];
    HEXAD_REQUIRE(length >= 0 && length + added <= room,
                  "lengths: row %lld is %lld, wants 0 to %lld (a cache of %lld keys)", (long long)b,
                  (long long)length, (long long)(room - added), (long long)room);
    const int64_t first = seen < 0 ? 0 : length > seen ? length - seen : 0;
    if (!table || first >= length + added) continue;
    for (int64_t i = first / page; i <= (length + added - 1) / page; ++i) {
      const int32_t at = data<int32_t>(*table)[b * stride(*table, 0) + i * stride(*table, 1)];
      HEXAD_REQUIRE(at >= 0 && at < pages, "block_table: row %lld has %d at %lld, wants 0 to %lld",
                    (long long)b, at, (long long)i, (long long)(pages - 1));
    }
  }
}

// Rotation tables (max_pos, n / 2), and that positions [first, first + rows) of a row are in them.
// Whether the tables are bfloat16, as `like` is then, on the CPU; else they are float32.
inline bool require_rotation(const hexad_tensor* cos, const hexad_tensor* sin, int64_t head_dim,
                             const hexad_tensor& like) {
  const hexad_tensor* tensors[] = {cos, sin};
  const char* names[] = {"cos", "sin"};
  HEXAD_REQUIRE(head_dim % 2 == 0, "x: has head dimension %lld, wants an even one to rotate",
                (long long)head_dim);
  require_rank(cos, "cos", 2);
  const bool bf16 =
      dtype_of(*cos) == DType::bf16 && dtype_of(like) == DType::bf16 && !on_cuda(like);
  for (int i = 0; i < 2; ++i) {
    require_rank(tensors[i], names[i], 2);
    require_dtype(*tensors[i], names[i], bf16 ? DType::bf16 : DType::f32);
    require_size(*tensors[i], names[i], 0, cos->shape[0]);
    require_size(*tensors[i], names[i], 1, head_dim / 2);
    require_rows(*tensors[i], names[i]);
    require_device(*tensors[i], names[i], like);
  }
  return bf16;
}

inline void require_positions(const hexad_tensor* starts, const char* name, int64_t batch,
                              int64_t rows, int64_t room) {
  if (rows == 0 || (starts && starts->device_type != HEXAD_CPU)) return;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t start = starts ? data<int32_t>(*starts)[b * stride(*starts, 0)] : 0;
    HEXAD_REQUIRE(start >= 0 && start + rows <= room,
                  "%s: row %lld starts at %lld, wants 0 to %lld (cos has %lld positions)", name,
                  (long long)b, (long long)start, (long long)(room - rows), (long long)room);
  }
}

}  // namespace hexad

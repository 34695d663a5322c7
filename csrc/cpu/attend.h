// Attention of query rows over the keys of one head, for attention and attention_varlen. Keys come
// in tiles of 64, counted from key 0. Within a row everything happens in one order: a score sums
// over the head dimension from 0 up, the softmax is carried tile by tile, the output sums over keys
// from the first up. So a row's bits depend on its own visible keys only, not on the other rows of
// its block, nor on where the keys lie.
#pragma once

#include "cpu/half.h"
#include "cpu/panel.h"

namespace hexad {
namespace {

constexpr int kTile = 64;       // keys in a tile
constexpr int64_t kDims = 512;  // of a head dimension, in a block's scratch
constexpr int64_t kChunk = 64;  // of a head dimension, where a tile is converted

template <class T>
constexpr bool kPaired = HEXAD_PAIRS && std::is_same<T, bf16>::value;
template <class T>
constexpr int kUnit = kPaired<T> ? 2 : 1;  // numbers in a step of a product

enum class MaskKind { none, boolean, f32, bf16, f16 };

struct Mask {
  MaskKind kind;
  const void* data;
  int64_t head, row, key;  // strides
};

// What a boolean mask that all heads share shows a block of rows, kept from head to head: a word a
// row for each of its first tiles.
struct SharedMask {
  static constexpr int kTiles = 16, kBlock = 512;
  const void* data = nullptr;  // of which mask, rows [begin, end) and tiles they are
  int64_t begin, end;
  bool known[kTiles][kBlock / 32];  // by strips of 32 rows
  uint64_t words[kTiles][kBlock];
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
  const T *k, *v;
  int64_t k_key, v_key;         // strides
  int64_t count;                // keys
  int64_t offset, left, right;  // query i sees keys i + offset - left .. i + offset + right
  Mask mask;                    // of the group's first head
  int64_t head_dim, value_dim;
  const float *slopes, *sinks;  // of the group's heads; null: none
  float scale, softcap;         // softcap 0: none
  SharedMask* shared;           // null: none
};

}  // namespace
}  // namespace hexad

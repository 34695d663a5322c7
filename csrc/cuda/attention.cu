// Which kernel serves a call of attention or attention_varlen: half precision goes to the tensor
// cores, float32 and wide heads to the ordinary ones.
#include "cuda/attend.cuh"
#include "cuda/sm90_attention.cuh"

namespace hexad {
namespace cuda {
namespace {

// Whether every row starts at a multiple of 16 bytes, of numbers of 2.
bool aligned(const void* base, const int64_t (&stride)[3]) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride[0] % 8 == 0 && stride[1] % 8 == 0 &&
         stride[2] % 8 == 0;
}

// A limit that no key of these sequences lies beyond is none.
int64_t limit(int64_t keys) {
  return keys < 2 * kMostPositions ? keys : -1;
}

}  // namespace

void attend(const char* op, AttendTask task, hexad_stream stream) {
  AttentionArgs& a = task.a;
  const int64_t group = a.heads / (a.kv_heads > 0 ? a.kv_heads : 1);
  if (a.rows > kMostPositions / (group > 0 ? group : 1) || a.keys > kMostPositions)
    fail(HEXAD_UNSUPPORTED, "%s: over 2^29 rows of a key head, or keys", op);
  if (a.batch * a.heads * a.rows == 0) return;
  a.left = limit(a.left), a.right = limit(a.right);
  task.pack = 1;
  task.vector = aligned(a.q, a.q_stride) && aligned(a.k, a.k_stride) && aligned(a.v, a.v_stride);
  task.vector_out = aligned(a.out, a.out_stride);
  const int64_t (&m)[4] = a.mask_stride;
  task.mask_pairs = reinterpret_cast<uintptr_t>(a.mask) % 2 == 0 && m[3] == 1 && m[0] % 2 == 0 &&
                    m[1] % 2 == 0 && m[2] % 2 == 0;
  constexpr int64_t kWidest = 256;
  if ((!a.bf16 && !a.f16) || a.head_dim > kWidest || a.value_dim > kWidest)
    return plain_attend(op, task, stream);
  if (a.bf16) return sm80_attend(op, task, bf16{}, stream);
  sm80_attend(op, task, f16{}, stream);
}

void attention(const AttentionArgs& args, hexad_stream stream) {
  if (args.batch * args.heads * args.rows == 0 || sm90_attention(args, stream)) return;
  AttendTask task{};
  task.a = args;
  attend("attention", task, stream);
}

}  // namespace cuda
}  // namespace hexad

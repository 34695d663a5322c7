"""hexad's ops on arrays of numpy: no copies, and arrays back. jax and cupy are the same."""

import numpy as np

import hexad_kernels as hk

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, heads, 64, 32), dtype=np.float32) for heads in (8, 2, 2))
out = hk.attention(q, k, v, causal=True)

scores = np.einsum("bhqd,bhkd->bhqk", q, k.repeat(4, axis=1)) / np.sqrt(32)
scores[..., ~np.tri(64, dtype=bool)] = -np.inf
weights = np.exp(scores - scores.max(-1, keepdims=True))
want = np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), v.repeat(4, axis=1))
print(type(out).__module__, out.shape, "largest difference from numpy's own:", np.abs(out - want).max())

# A cache is written where it lies; an array that is read-only is read, never written.
cache_k, cache_v = np.zeros((1, 2, 128, 32), np.float32), np.zeros((1, 2, 128, 32), np.float32)
hk.append_kv(k, v, cache_k, cache_v, np.zeros(1, np.int32))
last = hk.decode(np.ascontiguousarray(q[:, :, -1]), cache_k, cache_v, np.array([64], np.int32))
assert np.array_equal(last, out[:, :, -1])
k.flags.writeable = False
hk.attention(q, k, v)
try:
    cache_k.flags.writeable = False
    hk.append_kv(k, v, cache_k, cache_v, np.zeros(1, np.int32))
except ValueError as error:
    print("refused:", error)

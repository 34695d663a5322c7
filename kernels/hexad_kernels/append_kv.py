"""append_kv: new keys and values into a cache, in place.

    K_b[lengths[b] + s] = k_b[s]   (rotated to that position where cos and sin are given),   V_b[...] = v_b[s]

The cache is decode's: contiguous rows, or pages found through a block table. lengths is not changed: the caller counts.
In an int8 cache a row is kept as round(x / scale) with scale = max |x| / 127, rounded to nearest even, of the rotated k
and of v in float32: the error is at most half a scale. A float8 cache is the same with its own rounding and its own
largest number, 448 (e4m3fn) or 57344 (e5m2), in place of 127. A row with a NaN or an infinity has such a scale, and
decodes to NaN.

Papers: Kwon et al. 2023 (PagedAttention, arXiv 2309.06180), Su et al. 2021 (RoPE, 2104.09864).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.attention import MAX_HEAD_DIM
from hexad_kernels.decode import FLOAT8, LARGEST, check_cache, check_places
from hexad_kernels.op import CUDA_DTYPES, Op
from hexad_kernels.rope import check_positions, check_tables, rotate, table


def contract(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, interleaved: bool, k_scale: Tensor | None, v_scale: Tensor | None,
) -> tuple[()]:  # fmt: skip
    check.tensor(k, "k", rank=4)
    check.tensor(v, "v", rank=4)
    batch, heads, rows, dim = k.shape
    if v.shape[:3] != k.shape[:3]:
        check.shape(v, "v", (batch, heads, rows, None), "(B, Hkv, S, Dv)")
    check.like(v, "v", k, "k")
    check_cache(k_cache, v_cache, k_scale, v_scale, lengths, block_table, batch, k, "k")
    check.shape(k_cache, "k_cache", (None, heads, None, dim), "(P, Hkv, page, D)")
    check.shape(v_cache, "v_cache", (None, heads, None, v.shape[3]), "(P, Hkv, page, Dv)")
    for value, name in ((k_cache, "k_cache"), (v_cache, "v_cache"), (k_scale, "k_scale"), (v_scale, "v_scale")):
        check.own_memory(value, name)
    if (cos is None) != (sin is None):
        raise ValueError(f"{'cos' if cos is None else 'sin'}: missing, cos and sin come together")
    if cos is not None and sin is not None:
        check_tables(k, "k", cos, sin)
    return ()


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as a cache of that dtype has them, and their scales."""
    largest = LARGEST[dtype]
    scale = x.abs().amax(-1) / largest
    step = torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    kept = (x / step).nan_to_num(0.0).clamp(-largest, largest)
    return (kept if dtype.is_floating_point else kept.round()).to(dtype), scale


def reference(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, interleaved: bool, k_scale: Tensor | None, v_scale: Tensor | None,
) -> tuple[()]:  # fmt: skip
    starts, rows, page = lengths.tolist(), k.shape[2], k_cache.shape[2]
    check_places(starts, 0, rows, block_table, k_cache)
    if k_scale is not None:
        k, v = (t.to(check.statistics_dtype(t.dtype)) for t in (k, v))
    if cos is not None and sin is not None:
        check_positions(starts, "lengths", rows, cos)
        k = rotate(k, cos, sin, starts, interleaved)
    writes = [(k_cache, k), (v_cache, v)]
    if k_scale is not None and v_scale is not None:
        (k, k_steps), (v, v_steps) = (quantise(t, k_cache.dtype) for t in (k, v))
        writes = [(k_cache, k), (v_cache, v), (k_scale, k_steps), (v_scale, v_steps)]
    for b, start in enumerate(starts):
        for s in range(rows):
            at = start + s
            index = b if block_table is None else int(block_table[b, at // page])
            for cache, new in writes:
                cache[index, :, at % page] = new[b, :, s]
    return ()


def _native(
    outputs: tuple[()],
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, interleaved: bool, k_scale: Tensor | None, v_scale: Tensor | None,
) -> None:  # fmt: skip
    k_unit, v_unit = check.unit_stride(k_cache), check.unit_stride(v_cache)
    native.C.append_kv(
        check.unit_stride(k), check.unit_stride(v), k_unit, v_unit, lengths, block_table,
        None if cos is None else table(cos), None if sin is None else table(sin), k_scale, v_scale, interleaved,
    )  # fmt: skip
    for cache, unit in ((k_cache, k_unit), (v_cache, v_unit)):
        if unit is not cache:
            cache.copy_(unit)


def _refuses(k: Tensor, v: Tensor, k_cache: Tensor, *_: object) -> str | None:
    if k_cache.dtype in LARGEST and max(k.shape[3], v.shape[3]) > MAX_HEAD_DIM:
        return f"head dimension over {MAX_HEAD_DIM} in a quantised cache"
    return None


_op = Op(
    "append_kv",
    "(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor lengths, Tensor? block_table, Tensor? cos,"
    " Tensor? sin, bool interleaved, Tensor(c!)? k_scale, Tensor(d!)? v_scale) -> ()",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=(*CUDA_DTYPES, *FLOAT8),
    refuses=_refuses,
    cuda_refuses=_refuses,
)


def append_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    block_table: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Write S new keys and values of each sequence behind what its cache holds.

    k, v         (B, Hkv, S, D), (B, Hkv, S, Dv); float32, bfloat16, on CUDA float16 (else through the
                 reference, as float64)
    k_cache      (P, Hkv, page, D), v_cache (P, Hkv, page, Dv), k's dtype, int8, float8_e4m3fn or float8_e5m2
                 (float8 on the CPU through the reference), no expanded views; without block_table P = B
    lengths      (B,) int32: keys already there; row s goes to position lengths[b] + s
    block_table  (B, max_pages) int32: the page of each run of `page` positions. Sequences must not share the pages
                 they write to.
    cos, sin     (max_pos, D/2) float32, or k's dtype: k is rotated to its position (see rope); interleaved as there
    k_scale, v_scale   (P, Hkv, page) float32 (float64 for float64), with a quantised cache only: written beside it
    Returns nothing; the caches and their scales change, at those positions only. Raises ValueError naming the row and
    the value for a position beyond the cache or the tables and for a page that is not in the cache, before anything is
    written (on the CPU; on a GPU the values are the caller's care), and for a cache whose entries share memory.
    """
    _op(k, v, k_cache, v_cache, lengths, block_table, cos, sin, interleaved, k_scale, v_scale)

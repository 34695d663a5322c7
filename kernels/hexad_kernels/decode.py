"""decode: attention of one new query per sequence over its cached keys and values.

    out_b = attention(q_b, K_b[:n_b], V_b[:n_b]),  n_b = lengths[b]

K_b and V_b are rows of a cache (P, Hkv, page, D). Without a block table sequence b owns page b. With one, key j of
sequence b lies in page block_table[b, j // page] at slot j % page. The new token's own key belongs in the cache first
(append_kv), and lengths counts it. What a cache holds past a sequence's length is never read.

A row's bits are the same for any batch, any paging and any capacity of the cache; on the CPU they are those of the same
row in a causal attention over the same keys.

A quantised cache, int8 or float8 (e4m3fn, e5m2), has a scale for each slot and head: K = k_cache * k_scale,
V = v_cache * v_scale. Two options, with h the query head and p = lengths - 1 the newest position, change the softmax:

    alibi_slopes   s_hj <- s_hj - slope_h (p - j)                               after the soft cap
    sinks          lse_h = ln(exp(sink_h) + sum_j exp(s_hj))                    a logit that has no value

Papers: Kwon et al. 2023 (PagedAttention, arXiv 2309.06180), Shazeer 2019 (multi-query decoding, 1911.02150), Press et
al. 2022 (ALiBi, 2108.12409), Xiao et al. 2024 (attention sinks, 2309.17453), Micikevicius et al. 2022 (float8,
2209.05433).
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.attention import check_heads, check_numbers, refuses, window_sides
from hexad_kernels.attention import reference as attend
from hexad_kernels.op import CUDA_DTYPES, Op

INDEX = (torch.int32,)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
LARGEST = {
    torch.int8: 127,
    torch.float8_e4m3fn: 448,
    torch.float8_e5m2: 57344,
}  # of a quantised cache, before its scale
CACHE = (*check.FLOATS, *LARGEST)
SPLIT = 512
CUDA_HEAD_DIM = 256


def check_cache(
    k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, lengths: Tensor,
    block_table: Tensor | None, batch: int, like: Tensor, like_name: str,
) -> None:  # fmt: skip
    """Shapes, dtypes and devices of a cache and of what addresses it; `like` has a float cache's dtype."""
    check.tensor(k_cache, "k_cache", rank=4, dtypes=CACHE)
    check.tensor(v_cache, "v_cache", rank=4, dtypes=CACHE)
    quantised = k_cache.dtype in LARGEST
    check.like(k_cache, "k_cache", like, like_name, dtype=not quantised)
    pages, heads, page, _ = k_cache.shape
    check.shape(v_cache, "v_cache", (pages, heads, page, None), "(P, Hkv, page, Dv)")
    check.like(v_cache, "v_cache", k_cache, "k_cache")
    if quantised or k_scale is not None or v_scale is not None:
        _check_scale(k_scale, "k_scale", k_cache, like)
        _check_scale(v_scale, "v_scale", k_cache, like)
    check.tensor(lengths, "lengths", rank=1, dtypes=INDEX)
    check.like(lengths, "lengths", k_cache, "k_cache", dtype=False)
    check.shape(lengths, "lengths", (batch,), "(B,)")
    if block_table is None:
        if pages != batch:
            raise ValueError(f"k_cache: has {pages} pages, wants one for each of the {batch} rows, or a block_table")
    else:
        check.tensor(block_table, "block_table", rank=2, dtypes=INDEX)
        check.like(block_table, "block_table", k_cache, "k_cache", dtype=False)
        check.shape(block_table, "block_table", (batch, None), "(B, max_pages)")


def _check_scale(scale: Tensor | None, name: str, cache: Tensor, like: Tensor) -> None:
    dtype = check.names([cache.dtype])
    if cache.dtype not in LARGEST:
        if scale is not None:
            raise ValueError(f"{name}: given, but k_cache is {dtype}: scales are an int8 or float8 cache's")
        return
    if scale is None:
        raise ValueError(f"{name}: missing, {'an' if dtype == 'int8' else 'a'} {dtype} cache wants its scales")
    check.tensor(scale, name, rank=3, dtypes=(check.statistics_dtype(like.dtype),))
    check.like(scale, name, cache, "k_cache", dtype=False)
    check.shape(scale, name, tuple(cache.shape[:3]), "(P, Hkv, page)")


def check_per_head(value: Tensor | None, name: str, q: Tensor, heads: int) -> None:
    """One number for each query head."""
    if value is not None:
        check.tensor(value, name, rank=1, dtypes=(check.statistics_dtype(q.dtype),))
        check.like(value, name, q, "q", dtype=False)
        check.shape(value, name, (heads,), "(Hq,)")


def check_places(
    lengths: list[int], seen: int, added: int, block_table: Tensor | None, k_cache: Tensor, name: str = "lengths"
) -> None:
    """Keys lengths - seen (from 0 where seen < 0) to lengths + added of every row lie in the cache.

    Reads the values, so it is for references only; the compiled kernels check the same in their door.
    """
    pages, _, page, _ = k_cache.shape
    table = None if block_table is None else block_table.tolist()
    room = page if block_table is None else block_table.shape[1] * page
    for b, length in enumerate(lengths):
        end = length + added
        if length < 0 or end > room:
            raise ValueError(f"{name}: row {b} is {length}, wants 0 to {room - added} (a cache of {room} keys)")
        first = 0 if seen < 0 else max(0, length - seen)
        if table is not None and first < end:
            for i in range(first // page, (end - 1) // page + 1):
                if not 0 <= table[b][i] < pages:
                    raise ValueError(f"block_table: row {b} has {table[b][i]} at {i}, wants 0 to {pages - 1}")


def contract(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, left: int,
    softcap: float | None, scale: float | None, k_scale: Tensor | None, v_scale: Tensor | None,
    alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check.tensor(q, "q", rank=3)
    batch, heads, dim = q.shape
    check_cache(k_cache, v_cache, k_scale, v_scale, lengths, block_table, batch, q, "q")
    if k_cache.shape[3] != dim:
        check.shape(k_cache, "k_cache", (None, None, None, dim), "(P, Hkv, page, D)")
    check_heads(q, heads, k_cache.shape[1], "k_cache")
    check_numbers(softcap, scale)
    check_per_head(alibi_slopes, "alibi_slopes", q, heads)
    check_per_head(sinks, "sinks", q, heads)
    return q.new_empty(batch, heads, v_cache.shape[3]), check.empty_statistics(q, batch, heads)


def cached_rows(cache: Tensor, b: int, count: int, block_table: Tensor | None) -> Tensor:
    """Keys 0 .. count - 1 of sequence b as (1, Hkv, count, D); of scales (1, Hkv, count)."""
    if block_table is None:
        return cache[b : b + 1, :, :count]
    page = cache.shape[2]
    used = block_table[b, : -(-count // page) if count else 0].long()
    return cache[used].transpose(0, 1).flatten(1, 2)[None, :, :count]


def reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, left: int,
    softcap: float | None, scale: float | None, k_scale: Tensor | None, v_scale: Tensor | None,
    alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    counts = lengths.tolist()
    if not counts:
        return contract(
            q, k_cache, v_cache, lengths, block_table, left, softcap, scale, k_scale, v_scale, alibi_slopes, sinks
        )
    check_places(counts, -1 if left < 0 else left + 1, 0, block_table, k_cache)
    if block_table is not None:
        # Entries that no key needs (past a length, before the window) may be anything.
        block_table = block_table.clamp(0, k_cache.shape[0] - 1)
    wide = check.statistics_dtype(q.dtype)
    outs, lses = [], []
    for b, n in enumerate(counts):
        k, v = (cached_rows(c, b, n, block_table) for c in (k_cache, v_cache))
        if k_scale is not None and v_scale is not None:
            k, v = (
                cached_rows(scale, b, n, block_table).unsqueeze(-1) * c.to(wide)
                for c, scale in ((k, k_scale), (v, v_scale))
            )
        bias = None
        if alibi_slopes is not None:
            bias = (alibi_slopes[:, None] * torch.arange(1 - n, 1, device=q.device))[None, :, None]
        out, lse = attend(q[b : b + 1, :, None].to(wide), k, v, bias, 1, left, -1, softcap, scale)
        if sinks is not None:
            with_sink = torch.logaddexp(lse, sinks[:, None])
            share = torch.where(with_sink == -torch.inf, 0.0, torch.exp(lse - with_sink))
            out, lse = out * share[..., None], with_sink
        outs.append(out[:, :, 0].to(q.dtype))
        lses.append(lse[:, :, 0])
    return torch.cat(outs), torch.cat(lses)


def most_splits(capacity: int, left: int) -> int:
    """The most splits that a row of a cache meets on a GPU: 16 of 512 keys, then of 2048 (csrc/op/decode.h)."""
    splits = max(
        1, -(-capacity // SPLIT) if capacity <= 16 * SPLIT else 16 + -(-(capacity - 16 * SPLIT) // (4 * SPLIT))
    )
    return splits if left < 0 else min(splits, -(-left // SPLIT) + 1)


def _workspace(q: Tensor, v_cache: Tensor, block_table: Tensor | None, left: int) -> Tensor | None:
    capacity = v_cache.shape[2] * (1 if block_table is None else block_table.shape[1])
    splits = most_splits(capacity, left)
    if splits == 1:
        return None
    return q.new_empty(q.shape[0] * q.shape[1] * splits * (v_cache.shape[3] + 2), dtype=torch.float32)


def _native(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, left: int,
    softcap: float | None, scale: float | None, k_scale: Tensor | None, v_scale: Tensor | None,
    alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    native.C.decode(
        check.unit_stride(q), check.unit_stride(k_cache), check.unit_stride(v_cache), lengths, block_table,
        k_scale, v_scale, alibi_slopes, sinks, *outputs,
        None if q.is_cpu and not native.emulated else _workspace(q, v_cache, block_table, left), left, softcap or 0.0,
        q.shape[2] ** -0.5 if scale is None else scale,
    )  # fmt: skip


def _cuda_refuses(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> str | None:
    if q.shape[-1] > CUDA_HEAD_DIM or v_cache.shape[-1] > CUDA_HEAD_DIM:
        return f"head dimension over {CUDA_HEAD_DIM}"
    return None


def _batch(*args: Any) -> dict[int, int]:
    """Without a block table the pages are the batch, too."""
    return {0: 3, 3: 1, 4: 2} if args[4] is not None else {0: 3, 1: 4, 2: 4, 3: 1, 8: 3, 9: 3}


_op = Op(
    "decode",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? block_table, int left, float? softcap,"
    " float? scale, Tensor? k_scale, Tensor? v_scale, Tensor? alibi_slopes, Tensor? sinks) -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=(*CUDA_DTYPES, *FLOAT8),
    refuses=refuses,
    cuda_refuses=_cuda_refuses,
    batch=_batch,
)


@overload
def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *,
    block_table: Tensor | None = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., k_scale: Tensor | None = ...,
    v_scale: Tensor | None = ..., alibi_slopes: Tensor | None = ..., sinks: Tensor | None = ...,
    return_lse: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *,
    block_table: Tensor | None = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., k_scale: Tensor | None = ...,
    v_scale: Tensor | None = ..., alibi_slopes: Tensor | None = ..., sinks: Tensor | None = ...,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    block_table: Tensor | None = None,
    window: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one query per sequence over a contiguous or paged cache.

    q            (B, Hq, D); float32, bfloat16, on a GPU float16 (others through the reference)
    k_cache      (P, Hkv, page, D), q's dtype, int8, float8_e4m3fn or float8_e5m2 (float8 on the CPU through the
                 reference); without block_table P = B and page is the cache's capacity; Hkv divides Hq
    v_cache      (P, Hkv, page, Dv)
    lengths      (B,) int32: keys of each sequence, the newest at lengths - 1; 0 gives out 0, lse -inf
    block_table  (B, max_pages) int32: the page of each run of `page` keys; entries past a length, or wholly before the
                 window, are never read
    window       w: the last w keys; (left, right): the last left + 1 keys (right is of no effect)
    softcap, scale   as in attention
    k_scale, v_scale   (P, Hkv, page) float32 (float64 for float64): what a quantised cache's keys and values are to
                 be multiplied by; append_kv writes them
    alibi_slopes (Hq,) float32 (float64 for float64): head h adds -slope_h times a key's distance to its score
    sinks        (Hq,) float32 (float64 for float64): a logit of each head that joins its softmax without a value;
                 counted in lse, so that an empty sequence has out 0, lse = sink
    Returns out (B, Hq, Dv) like q; with return_lse also lse (B, Hq) float32 (float64 for float64).
    Raises ValueError naming the row and the value for a length beyond the cache or below 0 and for a page that is not
    in the cache, before anything is written (on the CPU; on a GPU the values are the caller's care).
    """
    left, _ = window_sides(window, True)
    out, lse = _op(
        q, k_cache, v_cache, lengths, block_table, left, softcap, scale, k_scale, v_scale, alibi_slopes, sinks
    )
    return (out, lse) if return_lse else out

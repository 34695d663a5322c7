"""decode: attention of one new query per sequence over its cached keys and values.

    out_b = attention(q_b, K_b[:n_b], V_b[:n_b]),  n_b = lengths[b]

K_b and V_b are rows of a cache (P, Hkv, page, D). Without a block table sequence b owns page b. With one, key j of
sequence b lies in page block_table[b, j // page] at slot j % page. The new token's own key belongs in the cache first
(append_kv), and lengths counts it. What a cache holds past a sequence's length is never read.

A row's bits are those of the same row in a causal attention over the same keys, for any batch and any paging.

Papers: Kwon et al. 2023 (PagedAttention, arXiv 2309.06180), Shazeer 2019 (multi-query decoding, 1911.02150).
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.attention import check_heads, check_numbers, refuses, window_sides
from hexad_kernels.attention import reference as attend
from hexad_kernels.op import Op

INDEX = (torch.int32,)


def check_cache(k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, batch: int) -> None:
    """Shapes, dtypes and devices of a cache and of what addresses it."""
    check.tensor(k_cache, "k_cache", rank=4)
    check.tensor(v_cache, "v_cache", rank=4)
    pages, heads, page, _ = k_cache.shape
    check.shape(v_cache, "v_cache", (pages, heads, page, None), "(P, Hkv, page, Dv)")
    check.like(v_cache, "v_cache", k_cache, "k_cache")
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
    softcap: float | None, scale: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check.tensor(q, "q", rank=3)
    batch, heads, dim = q.shape
    check_cache(k_cache, v_cache, lengths, block_table, batch)
    check.like(k_cache, "k_cache", q, "q")
    if k_cache.shape[3] != dim:
        check.shape(k_cache, "k_cache", (None, None, None, dim), "(P, Hkv, page, D)")
    check_heads(q, heads, k_cache.shape[1], "k_cache")
    check_numbers(softcap, scale)
    return q.new_empty(batch, heads, v_cache.shape[3]), check.empty_statistics(q, batch, heads)


def cached_rows(cache: Tensor, b: int, count: int, block_table: Tensor | None) -> Tensor:
    """Keys 0 .. count - 1 of sequence b as (1, Hkv, count, D)."""
    if block_table is None:
        return cache[b : b + 1, :, :count]
    page = cache.shape[2]
    used = block_table[b, : -(-count // page) if count else 0].long()
    return cache[used].transpose(0, 1).flatten(1, 2)[None, :, :count]


def reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, left: int,
    softcap: float | None, scale: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    counts = lengths.tolist()
    check_places(counts, -1 if left < 0 else left + 1, 0, block_table, k_cache)
    if block_table is not None:
        # Entries that no key needs (past a length, before the window) may be anything.
        block_table = block_table.clamp(0, k_cache.shape[0] - 1)
    rows = [
        attend(
            q[b : b + 1, :, None], cached_rows(k_cache, b, n, block_table), cached_rows(v_cache, b, n, block_table),
            None, 1, left, -1, softcap, scale,
        )
        for b, n in enumerate(counts)
    ]  # fmt: skip
    if not rows:
        return contract(q, k_cache, v_cache, lengths, block_table, left, softcap, scale)
    return torch.cat([out[:, :, 0] for out, _ in rows]), torch.cat([lse[:, :, 0] for _, lse in rows])


def _native(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, left: int,
    softcap: float | None, scale: float | None,
) -> None:  # fmt: skip
    native.C.decode(
        check.unit_stride(q), check.unit_stride(k_cache), check.unit_stride(v_cache), lengths, block_table, *outputs,
        left, softcap or 0.0, q.shape[2] ** -0.5 if scale is None else scale,
    )  # fmt: skip


_op = Op(
    "decode",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? block_table, int left, float? softcap,"
    " float? scale) -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=True,
    refuses=refuses,
)


@overload
def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *,
    block_table: Tensor | None = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., return_lse: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *,
    block_table: Tensor | None = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., return_lse: Literal[True],
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
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one query per sequence over a contiguous or paged cache.

    q            (B, Hq, D); float32, bfloat16 (float16, float64 through the reference)
    k_cache      (P, Hkv, page, D); without block_table P = B and page is the cache's capacity; Hkv divides Hq
    v_cache      (P, Hkv, page, Dv)
    lengths      (B,) int32: keys of each sequence, the newest at lengths - 1; 0 gives out 0, lse -inf
    block_table  (B, max_pages) int32: the page of each run of `page` keys; entries past a length, or wholly before the
                 window, are never read
    window       w: the last w keys; (left, right): the last left + 1 keys (right is of no effect)
    softcap, scale   as in attention
    Returns out (B, Hq, Dv) like q; with return_lse also lse (B, Hq) float32 (float64 for float64).
    Raises ValueError naming the row and the value for a length beyond the cache or below 0 and for a page that is not
    in the cache, before anything is written (on the CPU; on a GPU the values are the caller's care).
    """
    left, _ = window_sides(window, True)
    out, lse = _op(q, k_cache, v_cache, lengths, block_table, left, softcap, scale)
    return (out, lse) if return_lse else out

"""decode: attention of one new query per sequence over its cached keys and values.

    out_b = attention(q_b, K_b[:n_b], V_b[:n_b]),  n_b = lengths[b]

K_b and V_b are rows of a cache (P, Hkv, page, D). Without a block table sequence b owns page b. With one, key j of
sequence b lies in page block_table[b, j // page] at slot j % page. The new token's own key belongs in the cache first
(append_kv), and lengths counts it. What a cache holds past a sequence's length is never read.

A row's bits are those of the same row in a causal attention over the same keys, for any batch and any paging.

Papers: Kwon et al. 2023 (PagedAttention, arXiv 2309.06180), Shazeer 2019 (multi-query decoding, 1911.02150).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hexad_kernels import check
from hexad_kernels.attention import check_heads, check_numbers, window_sides
from hexad_kernels.attention import reference as attend
from hexad_kernels.op import Op

INDEX = (torch.int32,)


def check_cache(k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, batch: int) -> None:
    """Shapes, dtypes and devices of a cache and of what addresses it."""
    check.tensor(k_cache, "k_cache", rank=4)
    check.tensor(v_cache, "v_cache", rank=4)
    if v_cache.shape[:3] != k_cache.shape[:3]:
        check.shape(v_cache, "v_cache", (*k_cache.shape[:3], None), "(P, Hkv, page, Dv)")
    check.like(v_cache, "v_cache", k_cache, "k_cache")
    check.tensor(lengths, "lengths", rank=1, dtypes=INDEX)
    check.like(lengths, "lengths", k_cache, "k_cache", dtype=False)
    check.shape(lengths, "lengths", (batch,), "(B,)")
    if block_table is None:
        if k_cache.shape[0] != batch:
            raise ValueError(
                f"k_cache: has {k_cache.shape[0]} pages, wants one for each of the {batch} rows, or a block_table"
            )
    else:
        check.tensor(block_table, "block_table", rank=2, dtypes=INDEX)
        check.like(block_table, "block_table", k_cache, "k_cache", dtype=False)
        check.shape(block_table, "block_table", (batch, None), "(B, max_pages)")


def check_places(
    first: list[int], end: list[int], block_table: Tensor | None, k_cache: Tensor, name: str = "lengths"
) -> None:
    """Keys first[b] .. end[b] - 1 of every row b lie in the cache; the values are read, so not for fake tensors."""
    pages, _, page, _ = k_cache.shape
    table = None if block_table is None else block_table.tolist()
    room = page if block_table is None else block_table.shape[1] * page
    for b, (start, stop) in enumerate(zip(first, end)):
        if start < 0 or stop > room:
            raise ValueError(f"{name}: row {b} needs keys {start} to {stop}, the cache has room for {room}")
        if table is not None and stop > start:
            for i in range(start // page, (stop - 1) // page + 1):
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
    lse = torch.empty((batch, heads), dtype=check.statistics_dtype(q.dtype), device=q.device)
    return q.new_empty((batch, heads, v_cache.shape[3])), lse


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
    first = [0 if left < 0 else min(max(n, 0), max(0, n - 1 - left)) for n in counts]
    check_places([f if n >= 0 else n for f, n in zip(first, counts)], counts, block_table, k_cache)
    if block_table is not None and left >= 0:
        # Pages before the window may be gone: their entries mean nothing.
        block_table = block_table.clone()
        for b, f in enumerate(first):
            block_table[b, : f // k_cache.shape[2]] = 0
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


_op = Op(
    "decode",
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? block_table, int left, float? softcap,"
    " float? scale) -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
)


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

"""Attention over a paged cache as serving engines keep one: tokens of many requests packed in a row.

A batch of single tokens is one `decode`. Any other is gathered out of its pages first: on the CPU into one
`attention_varlen`, on a GPU into an `attention` per request.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import hexad_kernels as hk


def write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Puts a row of key (T, Hkv, D) and value at each slot of caches (P, Hkv, page, D); a slot below 0 is padding."""
    page, slots = k_cache.shape[2], slots.long()
    real = slots >= 0
    if not bool(real.all()):
        slots, key, value = slots[real], key[: len(real)][real], value[: len(real)][real]
    where, row = slots // page, slots % page
    k_cache[where, :, row] = key[: len(slots)].to(k_cache.dtype)
    v_cache[where, :, row] = value[: len(slots)].to(v_cache.dtype)


def attend(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    starts: Tensor,
    lengths: Tensor,
    block_table: Tensor,
    *,
    window: tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal attention of each request's newest tokens over all of its keys.

    query        (T, Hq, D): request n has rows starts[n] to starts[n + 1], its last ones
    k_cache      (P, Hkv, page, D), v_cache (P, Hkv, page, Dv), the new keys among them
    starts       (N + 1,), lengths (N,) of all keys, block_table (N, max_pages)
    window       (left, right) as in `attention`; softcap, scale, alibi_slopes and sinks too
    Returns (T, Hq, Dv).
    """
    options: dict[str, Any] = {"window": window, "softcap": softcap or None, "scale": scale}
    if alibi_slopes is not None:
        options["alibi_slopes"] = alibi_slopes
    if sinks is not None:
        options["sinks"] = sinks.float()
    if len(query) == len(lengths):
        return hk.decode(query, k_cache, v_cache, lengths.int(), block_table=block_table.int(), **options)
    page, kept = k_cache.shape[2], lengths.tolist()
    pages = [table[: -(-n // page)].long() for table, n in zip(block_table, kept)]
    k, v = ([cache[p].transpose(1, 2).flatten(0, 1)[:n] for p, n in zip(pages, kept)] for cache in (k_cache, v_cache))
    if query.is_cpu:
        ends = torch.cumsum(lengths.int(), 0, dtype=torch.int32)
        cu_seqlens = torch.cat((ends.new_zeros(1), ends))
        return hk.attention_varlen(query, torch.cat(k), torch.cat(v), starts.int(), cu_seqlens, causal=True, **options)
    at = starts.tolist()
    rows = [query[a:b].transpose(0, 1)[None] for a, b in pairwise(at)]
    found = [
        hk.attention(q, a.transpose(0, 1)[None], b.transpose(0, 1)[None], causal=True, **options)
        for q, a, b in zip(rows, k, v)
    ]
    return torch.cat([out[0].transpose(0, 1) for out in found])

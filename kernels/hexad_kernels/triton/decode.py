"""decode in Triton: a row's keys are split among programs, a second launch adds up what they found.

    decode_kernel    a program per sequence, query heads of one key head (up to 64 as rows of its products) and split
                     of SPLIT keys walks the split's tiles; a row within one split is finished there
    combine_kernel   a program per sequence, head and some columns of out merges the splits of a longer row

Splits and tiles have fixed sizes and are counted from key 0, and a row takes part in those its own length and window
reach; the rest of the grid, which is as large as the cache's shape, ends at once. So a row's bits depend neither on
the batch, nor on the cache's capacity, nor on where its pages lie. The workspace follows from shapes alone.

A quantised cache's scales multiply scores and weights, not the (SPLIT, D) keys and values. Its bytes are converted
exactly.

Paper: Dao et al. 2023 (Flash-Decoding, pytorch.org/blog/flash-decoding).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton import attention
from hexad_kernels.triton.attention import (
    LOG2E,
    OPTIONS,
    SCALED,
    adjusted,
    denominator,
    load_tile,
    log_sum,
    online_softmax,
    padded,
    stride_of,
)
from hexad_kernels.triton.common import FLOAT8, INTERPRETED, from_float8, launch, raw, target, widen

CHUNK = tl.constexpr(64)  # splits that combine_kernel merges at a time
COLUMNS = 64


@triton.jit
def seen_splits(length, left, LEFT: tl.constexpr, SPLIT: tl.constexpr):
    """(first key, first split, last split) of a row; an empty row has split 0."""
    start = 0
    if LEFT:
        start = tl.maximum(length - 1 - left, 0)
    return start, start // SPLIT, tl.maximum(length - 1, 0) // SPLIT


@triton.jit
def with_sink(m, total, sink):
    """(factor of what was summed, maximum, sum) with a logit more."""
    m_new = tl.maximum(m, sink)
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    before = tl.exp2(m - base)
    return before, m_new, tl.fma(total, before, tl.exp2(sink - base))


@triton.jit(do_not_specialize=["heads", "kv_heads", "page", "splits", "left"])
def decode_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, table_ptr, k_scale_ptr, v_scale_ptr, slopes_ptr, sinks_ptr, out_ptr, lse_ptr,
    part_ptr, stats_ptr, heads, kv_heads, page, splits, stats, dim, value_dim,
    q_row, q_head, q_col, k_page, k_head, k_slot, k_col, v_page, v_head, v_slot, v_col,
    k_scale_page, k_scale_head, k_scale_slot, v_scale_page, v_scale_head, v_scale_slot,
    length_row, table_row, table_col, slopes_stride, sinks_stride, left, softcap, factor,
    PAGED: tl.constexpr, LEFT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    SCALES: tl.constexpr, KIND: tl.constexpr, PAD_K: tl.constexpr, PAD_V: tl.constexpr, UP: tl.constexpr,
    HEADS: tl.constexpr, SPLIT: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    group = heads // kv_heads
    parts = tl.cdiv(group, HEADS)
    b = (tl.program_id(0) // (kv_heads * parts)).to(tl.int64)
    split = tl.program_id(1)
    length = tl.load(lengths_ptr + b * length_row)
    start, first_split, last_split = seen_splits(length, left, LEFT, SPLIT)
    if (split < first_split) | (split > last_split):
        return
    kv_head = (tl.program_id(0) // parts % kv_heads).to(tl.int64)
    of_group = tl.program_id(0) % parts * HEADS + tl.arange(0, HEADS)
    here = of_group < group
    # Heads past the group's last repeat it: they read what is there, and are not stored.
    head = kv_head * group + tl.minimum(of_group, group - 1)
    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    columns = tl.arange(0, BN)
    q_at = q_ptr + b * q_row + head[:, None] * q_head + d[None, :] * q_col
    q = widen(load_tile(q_at, True, d[None, :] < dim, False, PAD_K), UP)
    slopes = 0.0
    if ALIBI:
        slopes = tl.load(slopes_ptr + head * slopes_stride) * LOG2E
    k_ptr += kv_head * k_head
    v_ptr += kv_head * v_head
    acc = tl.zeros((HEADS, DV), tl.float32)
    m = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    begin = tl.maximum(split * SPLIT, start // BN * BN)
    for n in tl.range(begin, tl.minimum(length, (split + 1) * SPLIT), BN):
        key = n + columns
        cached = (key >= start) & (key < length)
        if PAGED:
            at = tl.load(table_ptr + b * table_row + key // page * table_col, mask=cached, other=0).to(tl.int64)
            slot = (key % page).to(tl.int64)
        else:
            at = b
            slot = key.to(tl.int64)
        k_at = k_ptr + (at * k_page + slot * k_slot)[None, :] + d[:, None] * k_col
        k = load_tile(k_at, cached[None, :], d[:, None] < dim, True, PAD_K)
        if KIND:
            k = from_float8(k, KIND)
        s = tl.dot(q, k.to(q.dtype), input_precision="ieee")
        if SCALES:
            at_scale = at * k_scale_page + kv_head * k_scale_head + slot * k_scale_slot
            s = s * tl.load(k_scale_ptr + at_scale, mask=cached, other=0.0)[None, :]
        s = adjusted(s, of_group * 0 + (length - 1 - n), columns, slopes, softcap, factor, SCALED, SOFTCAP, ALIBI)
        s = tl.where(cached[None, :], s, float("-inf"))
        p, before, m, total = online_softmax(s, m, total, factor, SCALED)
        v_at = v_ptr + (at * v_page + slot * v_slot)[:, None] + dv[None, :] * v_col
        v = load_tile(v_at, cached[:, None], dv[None, :] < value_dim, True, PAD_V)
        if SCALES:
            at_scale = at * v_scale_page + kv_head * v_scale_head + slot * v_scale_slot
            p = p * tl.load(v_scale_ptr + at_scale, mask=cached, other=0.0)[None, :]
        if KIND:
            v = from_float8(v, KIND)
        acc = tl.dot(p.to(q.dtype), v.to(q.dtype), acc * before[:, None], input_precision="ieee")
    row = b * heads + head
    inside = here[:, None] & (dv < value_dim)[None, :]
    if first_split == last_split:
        if SINKS:
            before, m, total = with_sink(m, total, tl.load(sinks_ptr + head * sinks_stride) * LOG2E)
            acc = acc * before[:, None]
        out_at = out_ptr + row[:, None] * value_dim + dv[None, :]
        tl.store(out_at, acc / denominator(total)[:, None], mask=inside)
        tl.store(lse_ptr + row, log_sum(m, total), mask=here)
    else:
        at = row * splits + split
        tl.store(part_ptr + at[:, None] * value_dim + dv[None, :], acc, mask=inside)
        tl.store(stats_ptr + at, m, mask=here)
        tl.store(stats_ptr + stats + at, total, mask=here)


@triton.jit(do_not_specialize=["heads", "splits", "left"])
def combine_kernel(
    lengths_ptr, sinks_ptr, out_ptr, lse_ptr, part_ptr, stats_ptr, heads, splits, stats, value_dim, length_row,
    sinks_stride, left, LEFT: tl.constexpr, SINKS: tl.constexpr, SPLIT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths_ptr + row // heads * length_row)
    _, first_split, last_split = seen_splits(length, left, LEFT, SPLIT)
    if first_split == last_split:
        return
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    stats_ptr += row * splits
    part_ptr += row * splits * value_dim
    # Chunks are counted from split 0, so that their sums are a row's own.
    first_chunk = first_split // CHUNK * CHUNK
    top = tl.full((CHUNK,), float("-inf"), tl.float32)
    for c in range(first_chunk, last_split + 1, CHUNK):
        split = c + tl.arange(0, CHUNK)
        seen = (split >= first_split) & (split <= last_split)
        top = tl.maximum(top, tl.load(stats_ptr + split, mask=seen, other=float("-inf")))
    m = tl.max(top, 0)
    base = tl.where(m == float("-inf"), 0.0, m)
    total = base * 0.0
    acc = tl.zeros((COLUMNS,), tl.float32)
    for c in tl.range(first_chunk, last_split + 1, CHUNK):
        split = c + tl.arange(0, CHUNK)
        seen = (split >= first_split) & (split <= last_split)
        weight = tl.exp2(tl.load(stats_ptr + split, mask=seen, other=float("-inf")) - base)
        total += tl.sum(weight * tl.load(stats_ptr + stats + split, mask=seen, other=0.0), 0)
        at = part_ptr + split.to(tl.int64)[:, None] * value_dim + column[None, :]
        part = tl.load(at, mask=seen[:, None] & (column < value_dim)[None, :], other=0.0)
        acc += tl.sum(weight[:, None] * part, 0)
    if SINKS:
        before, m, total = with_sink(m, total, tl.load(sinks_ptr + row % heads * sinks_stride) * LOG2E)
        acc = acc * before
    tl.store(out_ptr + row * value_dim + column, acc / denominator(total), mask=column < value_dim)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + row, log_sum(m, total))


SPLIT, INTERPRETED_SPLIT = 512, 128
# Keys of a tile, warps, stages, by head dimension: enough bytes in flight for a memory that answers in 600 ns.
TILES = {
    "sm_80": {64: (64, 4, 3), 128: (64, 4, 3), 256: (32, 4, 3)},
    "sm_90": {64: (128, 4, 3), 128: (64, 4, 3), 256: (32, 4, 3)},
    "sm_100": {64: (128, 4, 3), 128: (64, 4, 3), 256: (32, 4, 3)},
    "gfx942": {64: (64, 4, 2), 128: (64, 4, 1), 256: (32, 4, 1)},
}
FLOAT32_TILE = (32, 8, 1)
# The interpreter sums a product's terms one after another: in float32 longer tiles would show.
INTERPRETED_TILES = {4: (32, 1, 1), 2: (64, 1, 1)}


def tiles(chip: str, dtype: torch.dtype, dim: int) -> tuple[int, int, int]:
    if INTERPRETED:
        return INTERPRETED_TILES[dtype.itemsize]
    if dtype == torch.float32:
        return FLOAT32_TILE
    return next(shape for width, shape in TILES[chip].items() if dim <= width)


def refuses(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: object) -> str | None:
    return attention.refuses(q, k_cache, v_cache, None)


def run(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, left: int,
    softcap: float | None, scale: float | None, k_scale: Tensor | None, v_scale: Tensor | None,
    alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    out, lse = outputs
    batch, heads, dim = q.shape
    _, kv_heads, page, value_dim = v_cache.shape
    room = page if block_table is None else page * block_table.shape[1]
    left = left if left < room else -1
    group = heads // kv_heads
    rows = min(max(16, triton.next_power_of_2(group)), 64)
    widths = padded(dim), padded(value_dim)
    step, warps, stages = tiles(target(q.device), q.dtype, max(widths))
    if block_table is not None:
        stages = 2 * stages - 1  # the pipeline counts the table's entry, which tells where a key lies, as a stage too
    split = INTERPRETED_SPLIT if INTERPRETED else SPLIT
    splits = max(1, triton.cdiv(room, split))
    count = batch * heads * splits if splits > 1 else 0
    parts = torch.empty(count * value_dim, dtype=torch.float32, device=q.device)
    stats = torch.empty(2 * count, dtype=torch.float32, device=q.device)
    cap, factor = attention.score_factors(dim, softcap, scale)
    scales = k_scale is not None and v_scale is not None
    launch(
        decode_kernel, (batch * kv_heads * triton.cdiv(group, rows), splits), q.device,
        q, raw(k_cache), raw(v_cache), lengths, block_table, k_scale, v_scale, alibi_slopes, sinks, out, lse, parts,
        stats, heads, kv_heads, page, splits, count, dim, value_dim,
        *q.stride(), *k_cache.stride(), *v_cache.stride(),
        *((0, 0, 0) if k_scale is None else k_scale.stride()), *((0, 0, 0) if v_scale is None else v_scale.stride()),
        *lengths.stride(), *((0, 0) if block_table is None else block_table.stride()),
        stride_of(alibi_slopes), stride_of(sinks), left, cap, factor,
        block_table is not None, left >= 0, softcap is not None, alibi_slopes is not None, sinks is not None, scales,
        FLOAT8.get(k_cache.dtype, 0), widths[0] != dim, widths[1] != value_dim, INTERPRETED, rows, split, step, *widths,
        num_warps=warps, num_stages=stages, **OPTIONS,
    )  # fmt: skip
    if splits > 1:
        columns = min(widths[1], COLUMNS)
        launch(
            combine_kernel, (batch * heads, triton.cdiv(value_dim, columns)), q.device,
            lengths, sinks, out, lse, parts, stats, heads, splits, count, value_dim, *lengths.stride(),
            stride_of(sinks), left, left >= 0, sinks is not None, split, columns, num_warps=4, **OPTIONS,
        )  # fmt: skip


# Registers and shared memory of the largest kernel a case launches, with a tenth to spare.
BUDGET = {
    "llama_paged bfloat16": {
        "sm_80": (176, 72704),
        "sm_90": (176, 72704),
        "sm_100": (176, 72704),
        "gfx942": (176, 16384),
        "matrix": "narrow",
    },
    "llama_paged_float8 bfloat16": {
        "sm_80": (255, 41472),
        "sm_90": (216, 41472),
        "sm_100": (212, 41472),
        "gfx942": (220, 8192),
        "matrix": "narrow",
    },
    "float8_e5m2_alibi_softcap float16": {"sm_90": (188, 41472), "matrix": "narrow"},
    "llama_paged_int8 bfloat16": {
        "sm_80": (240, 41472),
        "sm_90": (168, 41472),
        "sm_100": (168, 41472),
        "gfx942": (248, 8192),
        "matrix": "narrow",
    },
}

"""decode in Triton: a program per sequence and up to 16 query heads of one key head walks the cached keys.

Keys come in tiles of a fixed size counted from key 0, so a row's bits depend on its own length and window only, and
not on where its pages lie.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.decode import gpu_refuses
from hexad_kernels.triton.attention import denominator, log_sum, online_softmax, padded
from hexad_kernels.triton.attention import refuses as refuses_attention
from hexad_kernels.triton.common import INTERPRETED, launch, tanh, widen

HEADS = 16  # what a matrix instruction takes at least


@triton.jit
def decode_kernel(
    q_ptr, k_ptr, v_ptr, lengths_ptr, table_ptr, out_ptr, lse_ptr, heads, kv_heads, page, dim, value_dim,
    q_row, q_head, q_col, k_page, k_head, k_slot, k_col, v_page, v_head, v_slot, v_col, length_row, table_row,
    table_col, left, softcap, scale,
    PAGED: tl.constexpr, LEFT: tl.constexpr, SOFTCAP: tl.constexpr, UP: tl.constexpr, HEADS: tl.constexpr,
    BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    group = heads // kv_heads
    parts = tl.cdiv(group, HEADS)
    b = (tl.program_id(0) // (kv_heads * parts)).to(tl.int64)
    kv_head = tl.program_id(0) // parts % kv_heads
    of_group = tl.program_id(0) % parts * HEADS + tl.arange(0, HEADS)
    here = of_group < group
    head = kv_head * group + of_group
    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    columns = tl.arange(0, BN)
    length = tl.load(lengths_ptr + b * length_row)
    start = 0
    if LEFT:
        start = tl.maximum(length - 1 - left, 0)
    q_at = q_ptr + b * q_row + head[:, None] * q_head + d[None, :] * q_col
    q = widen(tl.load(q_at, mask=here[:, None] & (d[None, :] < dim), other=0.0), UP)
    acc = tl.zeros((HEADS, DV), tl.float32)
    m = tl.full((HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    for n in range(start // BN * BN, length, BN):
        key = n + columns
        cached = (key >= start) & (key < length)
        if PAGED:
            at = tl.load(table_ptr + b * table_row + key // page * table_col, mask=cached, other=0).to(tl.int64)
            slot = key % page
        else:
            at = b
            slot = key
        k_at = k_ptr + kv_head * k_head + at * k_page + slot * k_slot
        v_at = v_ptr + kv_head * v_head + at * v_page + slot * v_slot
        k = tl.load(k_at[None, :] + d[:, None] * k_col, mask=cached[None, :] & (d[:, None] < dim), other=0.0)
        s = tl.dot(q, widen(k, UP), input_precision="ieee") * scale
        if SOFTCAP:
            s = softcap * tanh(s / softcap)
        p, before, m, total = online_softmax(s, cached[None, :], m, total)
        v = tl.load(v_at[:, None] + dv[None, :] * v_col, mask=cached[:, None] & (dv[None, :] < value_dim), other=0.0)
        v = widen(v, UP)
        acc = tl.dot(p.to(v.dtype), v, acc * before[:, None], input_precision="ieee")
    row = b * heads + head
    out_at = out_ptr + row[:, None] * value_dim + dv[None, :]
    tl.store(out_at, acc / denominator(total)[:, None], mask=here[:, None] & (dv[None, :] < value_dim))
    tl.store(lse_ptr + row, log_sum(m, total), mask=here)


def tile(dtype: torch.dtype, width: int) -> dict[str, int]:
    """Keys of a tile, warps and stages."""
    if dtype == torch.float32:
        return {"BN": 32, "num_warps": 8, "num_stages": 1}
    return {"BN": 64 if width <= 128 else 32, "num_warps": 4, "num_stages": 2}


def refuses(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> str | None:
    return refuses_attention(q, k_cache, v_cache, None, None, None) or gpu_refuses(*rest[-4:])


def run(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None, left: int,
    softcap: float | None, scale: float | None, *absent: None,
) -> None:  # fmt: skip
    out, lse = outputs
    batch, heads, dim = q.shape
    _, kv_heads, page, value_dim = v_cache.shape
    widths = padded(dim), padded(value_dim)
    shape = tile(q.dtype, max(widths))
    launch(
        decode_kernel, (batch * kv_heads * triton.cdiv(heads // kv_heads, HEADS),), q.device,
        q, k_cache, v_cache, lengths, block_table, out, lse, heads, kv_heads, page, dim, value_dim,
        *q.stride(), *k_cache.stride(), *v_cache.stride(), *lengths.stride(),
        *((0, 0) if block_table is None else block_table.stride()), left,
        1.0 if softcap is None else softcap, dim**-0.5 if scale is None else scale,
        block_table is not None, left >= 0, softcap is not None, INTERPRETED, HEADS, shape["BN"], *widths,
        num_warps=shape["num_warps"], num_stages=shape["num_stages"],
    )  # fmt: skip


BUDGET = {
    "gpt bfloat16": {
        "sm_80": (80, 21504),
        "sm_90": (72, 21504),
        "sm_100": (72, 21504),
        "gfx942": (136, 17408),
        "matrix": "narrow",
    },
    "llama_paged bfloat16": {
        "sm_80": (136, 39936),
        "sm_90": (128, 39936),
        "sm_100": (128, 39936),
        "gfx942": (200, 33792),
        "matrix": "narrow",
    },
    "gpt float32": {"sm_80": (72, 15360), "sm_90": (72, 15360), "sm_100": (64, 15360), "gfx942": (104, 9216)},
}

"""attention in Triton: a program per tile of query rows carries the softmax over tiles of keys.

Tile sizes follow from dtype, head dimension and whether there is a mask, and key tiles are counted from key 0: a row's
bits depend on what it sees and on nothing else. Tiles that no row of the program sees are skipped.

A hidden key must not matter, yet in a matrix product 0 * NaN does. So the fast loop runs first; a program that ends
up with a NaN or an infinity runs again with care.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import INTERPRETED, launch, refuse_dtypes, tanh, widen

CAREFUL_COLUMNS = tl.constexpr(16)


@triton.jit
def online_softmax(s, visible, m, total):
    """One more tile of scores: its exponentials, the factor for what was summed before, the new (m, total)."""
    s = tl.where(visible, s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp(s - base[:, None])
    before = tl.exp(m - base)
    return p, before, m_new, total * before + tl.sum(p, 1)


@triton.jit
def add_special(acc, p, v_ptr, v_row, keys, BN: tl.constexpr):
    """acc plus what NaN and infinite values add, one key at a time; p is negative where a row doesn't see a key."""
    columns = tl.arange(0, BN)
    for j in tl.range(0, tl.minimum(BN, keys), num_stages=1):
        value = tl.load(v_ptr + j * v_row).to(tl.float32)
        weight = tl.sum(tl.where((columns == j)[None, :], p, 0.0), 1)
        adds = ((weight < 0.0) == 0)[:, None] & ((tl.abs(value) < float("inf")) == 0)[None, :]
        acc += tl.where(adds, weight[:, None] * value[None, :], 0.0)
    return acc


@triton.jit
def attend(
    q, k_ptr, v_ptr, mask_ptr, first, row_count, offset, keys, dim, value_dim,
    k_row, k_col, v_row, v_col, mask_row, mask_col, left, right, softcap, scale,
    MASK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, CAREFUL: tl.constexpr,
    UP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """(sum of weighted values, maximum, sum of exponentials) of query rows first .. first + BM - 1."""
    rows = first + tl.arange(0, BM)
    columns = tl.arange(0, BN)
    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    acc = tl.zeros((BM, DV), tl.float32)
    m = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    begin, end = 0, keys
    if LEFT:
        begin = tl.maximum(first + offset - left, 0) // BN * BN
    if RIGHT:
        end = tl.minimum(first + BM + offset + right, keys)
    k_at = k_ptr + columns[None, :] * k_row + d[:, None] * k_col
    v_at = v_ptr + columns[:, None] * v_row + dv[None, :] * v_col
    if MASK != 0:
        mask_ptr += tl.cast(first, tl.int64) * mask_row
    mask_at = tl.arange(0, BM)[:, None] * mask_row + columns[None, :] * mask_col
    # The careful loop is seldom run; pipelined, it would cost registers that the other one needs.
    for n in tl.range(begin, end, BN, num_stages=1 if CAREFUL else None):
        there = n + columns < keys
        step = tl.cast(n, tl.int64)
        k = tl.load(k_at + step * k_row, mask=there[None, :] & (d[:, None] < dim), other=0.0)
        s = tl.dot(q, widen(k, UP), input_precision="ieee") * scale
        if SOFTCAP:
            s = softcap * tanh(s / softcap)
        visible = there[None, :] & (rows < row_count)[:, None]
        ahead = (n + columns)[None, :] - (rows + offset)[:, None]
        if LEFT:
            visible = visible & (ahead >= -left)
        if RIGHT:
            visible = visible & (ahead <= right)
        if MASK == 1:
            visible = visible & (tl.load(mask_ptr + step * mask_col + mask_at, mask=visible, other=0) != 0)
        elif MASK == 2:
            bias = tl.load(mask_ptr + step * mask_col + mask_at, mask=visible, other=0.0).to(tl.float32)
            visible = visible & (bias != float("-inf"))
            s += bias
        p, before, m, total = online_softmax(s, visible, m, total)
        v = widen(tl.load(v_at + step * v_row, mask=there[:, None] & (dv[None, :] < value_dim), other=0.0), UP)
        acc *= before[:, None]
        if CAREFUL:
            finite = v - v == 0.0
            acc = tl.dot(p.to(v.dtype), tl.where(finite, v, 0.0).to(v.dtype), acc, input_precision="ieee")
            if tl.max(tl.max(tl.where(finite, 0, 1), 1), 0) > 0:
                # Clamped columns repeat the last value dimension, which the store leaves out.
                row = v_ptr + step * v_row + tl.minimum(dv, value_dim - 1) * v_col
                acc = add_special(acc, tl.where(visible, p, -1.0), row, v_row, keys - n, BN)
        else:
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    return acc, m, total


@triton.jit
def denominator(total):
    return tl.where(total == 0.0, 1.0, total)


@triton.jit
def log_sum(m, total):
    """A row's log-sum-exp; a row that saw nothing has total 0."""
    return tl.where(total == 0.0, float("-inf"), m + tl.log(denominator(total)))


@triton.jit
def any_special(acc):
    return tl.max(tl.max(tl.where(tl.abs(acc) < float("inf"), 0, 1), 1), 0) > 0


@triton.jit
def attention_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, out_ptr, lse_ptr, heads, group, row_count, keys, dim, value_dim,
    q_batch, q_head, q_row, q_col, k_batch, k_head, k_row, k_col, v_batch, v_head, v_row, v_col,
    mask_batch, mask_head, mask_row, mask_col, offset, left, right, softcap, scale,
    MASK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    UP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(row_count, BM)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * BM
    b, h = sequence // heads, sequence % heads
    rows = first + tl.arange(0, BM)
    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    q_ptr += b * q_batch + h * q_head
    k_ptr += b * k_batch + h // group * k_head
    v_ptr += b * v_batch + h // group * v_head
    if MASK != 0:
        mask_ptr += b * mask_batch + h * mask_head
    here = rows < row_count
    wide = rows.to(tl.int64)[:, None]
    q = tl.load(q_ptr + wide * q_row + d[None, :] * q_col, mask=here[:, None] & (d[None, :] < dim), other=0.0)
    q = widen(q, UP)
    acc, m, total = attend(
        q, k_ptr, v_ptr, mask_ptr, first, row_count, offset, keys, dim, value_dim,
        k_row, k_col, v_row, v_col, mask_row, mask_col, left, right, softcap, scale,
        MASK, LEFT, RIGHT, SOFTCAP, False, UP, BM, BN, D, DV,
    )  # fmt: skip
    out_ptr += sequence * row_count * value_dim
    out_at = out_ptr + wide * value_dim
    if any_special(acc):
        # A few columns at a time: the care costs registers.
        part = tl.arange(0, CAREFUL_COLUMNS)
        for c in range(0, value_dim, CAREFUL_COLUMNS):
            some, m, total = attend(
                q, k_ptr, v_ptr + c * v_col, mask_ptr, first, row_count, offset, keys, dim, value_dim - c,
                k_row, k_col, v_row, v_col, mask_row, mask_col, left, right, softcap, scale,
                MASK, LEFT, RIGHT, SOFTCAP, True, UP, BM, BN, D, CAREFUL_COLUMNS,
            )  # fmt: skip
            tl.store(
                out_at + c + part[None, :], some / denominator(total)[:, None],
                mask=here[:, None] & (c + part[None, :] < value_dim),
            )  # fmt: skip
    else:
        tl.store(
            out_at + dv[None, :], acc / denominator(total)[:, None], mask=here[:, None] & (dv[None, :] < value_dim)
        )
    tl.store(lse_ptr + sequence * row_count + rows, log_sum(m, total), mask=here)


def padded(dim: int) -> int:
    """The width of a matrix instruction's operand that holds `dim`."""
    return max(16, triton.next_power_of_2(dim))


def tiles(dtype: torch.dtype, dim: int, masked: bool) -> dict[str, int]:
    """Rows and keys of a tile, warps and stages: the widest that spill no register."""
    if dtype == torch.float32:
        return {"BM": 16, "BN": 16, "num_warps": 8, "num_stages": 1}
    keys = 64 if dim <= 64 and not masked else 32
    return {"BM": 64, "BN": keys, "num_warps": 4 if dim <= 128 else 8, "num_stages": 2}


def refuses(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: object) -> str | None:
    if rest[-2] is not None or rest[-1] is not None:
        return "alibi_slopes and sinks: its kernel has neither"
    if max(q.shape[-1], v.shape[-1]) > 256:
        return f"head dimension {max(q.shape[-1], v.shape[-1])}, its tiles hold 256"
    return refuse_dtypes(q, None if mask is None or mask.dtype == torch.bool else mask)


def run(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    out, lse = outputs
    batch, heads, rows, dim = q.shape
    kv_heads, keys, value_dim = v.shape[1:]
    if causal:
        right = 0
    kind = 0
    mask_strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        kind = 1 if mask.dtype == torch.bool else 2
        mask = mask.view(torch.uint8) if kind == 1 else mask
        mask_strides = mask.expand(batch, heads, rows, keys).stride()
    widths = padded(dim), padded(value_dim)
    shape = tiles(q.dtype, max(widths), mask is not None)
    launch(
        attention_kernel, (triton.cdiv(rows, shape["BM"]) * heads * batch,), q.device, q, k, v, mask, out, lse,
        heads, heads // kv_heads, rows, keys, dim, value_dim,
        *q.stride(), *k.stride(), *v.stride(), *mask_strides, 0 if causal == 2 else keys - rows, left, right,
        1.0 if softcap is None else softcap, dim**-0.5 if scale is None else scale,
        kind, left >= 0, right >= 0, softcap is not None, INTERPRETED, shape["BM"], shape["BN"], *widths,
        num_warps=shape["num_warps"], num_stages=shape["num_stages"],
    )  # fmt: skip


BUDGET = {
    "gpt_prefill bfloat16": {"sm_80": (255, 25600), "sm_90": (184, 41984), "gfx942": (248, 25600), "matrix": True},
    "llama_prefill bfloat16": {"sm_80": (248, 37888), "sm_90": (184, 50176), "gfx942": (208, 21504), "matrix": True},
    "gpt_prefill float32": {
        "sm_80": (136, 10240),
        "sm_90": (144, 10240),
        "sm_100": (144, 10240),
        "gfx942": (112, 5120),
    },
}

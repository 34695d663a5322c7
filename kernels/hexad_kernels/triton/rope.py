"""rope in Triton: a program rotates a few rows, whatever their strides; neighbours are loaded and stored as pairs."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import launch, refuse_dtypes

ELEMENTS = 1024  # pairs of a program


@triton.jit
def rotated(x_ptr, col, cos_ptr, sin_ptr, cos_col, sin_col, half, i, there, INTERLEAVED: tl.constexpr):
    """Pairs i of rows at x_ptr, turned by the tables' rows at cos_ptr and sin_ptr."""
    c = tl.load(cos_ptr + i * cos_col, mask=there, other=0.0).to(tl.float32)
    s = tl.load(sin_ptr + i * sin_col, mask=there, other=0.0).to(tl.float32)
    if INTERLEAVED:
        two = tl.arange(0, 2)[None, None, :]
        at = x_ptr[:, :, None] + (2 * i[:, :, None] + two) * col
        a, b = tl.split(tl.load(at, mask=there[:, :, None] & (two >= 0), other=0.0).to(tl.float32))
    else:
        a = tl.load(x_ptr + i * col, mask=there, other=0.0).to(tl.float32)
        b = tl.load(x_ptr + (i + half) * col, mask=there, other=0.0).to(tl.float32)
    return a * c - b * s, b * c + a * s


@triton.jit
def store_pairs(y_ptr, col, a, b, half, i, there, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        two = tl.arange(0, 2)[None, None, :]
        tl.store(
            y_ptr[:, :, None] + (2 * i[:, :, None] + two) * col, tl.join(a, b), mask=there[:, :, None] & (two >= 0)
        )
    else:
        tl.store(y_ptr + i * col, a, mask=there)
        tl.store(y_ptr + (i + half) * col, b, mask=there)


@triton.jit
def rope_kernel(
    x_ptr, cos_ptr, sin_ptr, positions_ptr, y_ptr, count, heads, rows, half, x_batch, x_head, x_row, x_col,
    cos_row, cos_col, sin_row, sin_col, position_row,
    INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    at = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    i = tl.arange(0, HALF)[None, :]
    there = (at < count) & (i < half)
    b, h, s = at // (heads * rows), at // rows % heads, at % rows
    place = s
    if positions_ptr is not None:
        place += tl.load(positions_ptr + b * position_row, mask=at < count, other=0)
    y1, y2 = rotated(
        x_ptr + b * x_batch + h * x_head + s * x_row, x_col, cos_ptr + place * cos_row, sin_ptr + place * sin_row,
        cos_col, sin_col, half, i, there, INTERLEAVED,
    )  # fmt: skip
    store_pairs(y_ptr + at * (2 * half), 1, y1, y2, half, i, there, INTERLEAVED)


def refuses(x: Tensor, cos: Tensor, sin: Tensor, *_: object) -> str | None:
    return refuse_dtypes(x, cos, sin)


def run(
    outputs: tuple[Tensor], x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool
) -> None:
    batch, heads, rows, dim = x.shape
    half = triton.next_power_of_2(dim // 2)
    at_once = max(1, ELEMENTS // half)
    count = batch * heads * rows
    launch(
        rope_kernel, (triton.cdiv(count, at_once),), x.device, x, cos, sin, positions, outputs[0],
        count, heads, rows, dim // 2, *x.stride(), *cos.stride(), *sin.stride(),
        0 if positions is None else positions.stride(0), interleaved, at_once, half,
    )  # fmt: skip


BUDGET = {
    "gpt bfloat16": {"sm_80": (40, 0), "sm_90": (40, 0), "sm_100": (40, 0), "gfx942": (40, 0)},
    "interleaved bfloat16": {"sm_80": (96, 0), "sm_90": (96, 0), "sm_100": (96, 0), "gfx942": (56, 0)},
}

"""coupling in Triton: rows go in pieces of a fixed size, a program each. A row of one piece leaves its log_det itself;
of a longer one a second launch adds up the pieces' sums in their order. So log_det depends on nothing but the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels import check
from hexad_kernels.coupling import active_channels
from hexad_kernels.triton.common import exp, launch, log_sigmoid, refuse_dtypes, tanh

TILE = 2048
PIECE = 4 * TILE


@triton.jit
def places(i, there, active_begin, active, height, width, CHECKERBOARD: tl.constexpr, FLIP: tl.constexpr):
    """Which elements i of a row move, and where their parameters lie."""
    if CHECKERBOARD:
        in_channel = i % (height * width)
        place = in_channel // width + in_channel % width
        return there & (place % 2 == (0 if FLIP else 1)), i
    j = i - active_begin
    return there & (j >= 0) & (j < active), j


@triton.jit
def scale(raw, clamp, SCALE_MAP: tl.constexpr):
    if SCALE_MAP == 1:
        raw = clamp * tanh(raw / clamp)
    elif SCALE_MAP == 2:
        raw = log_sigmoid(raw + 2.0)
    return raw


@triton.jit
def coupling_kernel(
    x_ptr, shift_ptr, raw_ptr, y_ptr, log_det_ptr, sums_ptr, pieces,
    row, x_stride, shift_stride, raw_stride, active_begin, active, height, width, clamp,
    INVERSE: tl.constexpr, CHECKERBOARD: tl.constexpr, FLIP: tl.constexpr, SCALE_MAP: tl.constexpr,
    TILE: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // pieces).to(tl.int64)
    first = tl.program_id(0) % pieces * PIECE
    total = tl.zeros((TILE,), tl.float64)
    for begin in range(first, tl.minimum(first + PIECE, row), TILE):
        i = begin + tl.arange(0, TILE)
        there = i < row
        moves, j = places(i, there, active_begin, active, height, width, CHECKERBOARD, FLIP)
        x = tl.load(x_ptr + b * x_stride + i, mask=there, other=0.0).to(tl.float32)
        t = tl.load(shift_ptr + b * shift_stride + j, mask=moves, other=0.0).to(tl.float32)
        if raw_ptr is not None:
            raw = tl.load(raw_ptr + b * raw_stride + j, mask=moves, other=0.0).to(tl.float32)
            s = scale(raw, clamp, SCALE_MAP)
            total += tl.where(moves, s, 0.0).to(tl.float64)
            moved = (x - t) * exp(-s) if INVERSE else x * exp(s) + t
        else:
            moved = x - t if INVERSE else x + t
        tl.store(y_ptr + b * row + i, tl.where(moves, moved, x), mask=there)
    log_det = tl.sum(total, 0)
    log_det = -log_det if INVERSE else log_det
    if sums_ptr is None:
        tl.store(log_det_ptr + b, log_det.to(tl.float32))
    else:
        tl.store(sums_ptr + tl.program_id(0), log_det)


@triton.jit
def log_det_kernel(sums_ptr, log_det_ptr, pieces, TILE: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    total = tl.zeros((TILE,), tl.float64)
    for begin in range(0, pieces, TILE):
        i = begin + tl.arange(0, TILE)
        total += tl.load(sums_ptr + b * pieces + i, mask=i < pieces, other=0.0)
    tl.store(log_det_ptr + b, tl.sum(total, 0).to(tl.float32))


def shape_of(x: Tensor, flip: bool) -> tuple[int, int, int, int]:
    """What places() asks for."""
    height, width = (x.shape[2], x.shape[3]) if x.ndim == 4 else (1, x[:1].numel())
    first, count = active_channels(x.shape[1], flip)
    pixels = x[:1, :1].numel()
    return first * pixels, count * pixels, height, width


def rows(value: Tensor | None) -> Tensor | None:
    return None if value is None else check.packed_rows(value).flatten(1)


def refuses(x: Tensor, shift: Tensor, log_scale: Tensor | None, *_: object) -> str | None:
    if x[:1].numel() >= 2**31 - PIECE:
        return "a row of 2^31 elements or more"
    return refuse_dtypes(x)


def run(
    outputs: tuple[Tensor, Tensor],
    x: Tensor, shift: Tensor, log_scale: Tensor | None,
    inverse: bool, split: int, flip: bool, scale_map: int, clamp: float,
) -> None:  # fmt: skip
    y, log_det = outputs
    place = shape_of(x, flip)
    flat, t, raw = rows(x), rows(shift), rows(log_scale)
    assert flat is not None and t is not None
    batch, row = flat.shape
    pieces = max(1, triton.cdiv(row, PIECE))
    sums = None
    if pieces > 1:
        sums = torch.empty(batch * pieces, dtype=torch.float64, device=x.device)
    launch(
        coupling_kernel, (batch * pieces,), x.device, flat, t, raw, y, log_det, sums, pieces,
        row, flat.stride(0), t.stride(0), 0 if raw is None else raw.stride(0), *place, clamp,
        inverse, split == 1, flip, scale_map, TILE, PIECE, num_warps=8,
    )  # fmt: skip
    if sums is not None:
        launch(log_det_kernel, (batch,), x.device, sums, log_det, pieces, 128, num_warps=1)


BUDGET = {
    "image float32": {"sm_80": (72, 64), "sm_90": (72, 64), "sm_100": (72, 64), "gfx942": (48, 64)},
    "checkerboard_pieces float16": {"sm_80": (104, 64), "sm_90": (112, 64), "sm_100": (112, 64), "gfx942": (48, 64)},
}

"""coupling in Triton: a program per batch row walks the row in tiles of a fixed size, so the order in which
log_det is summed depends on nothing but the row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels import check
from hexad_kernels.coupling import active_channels
from hexad_kernels.triton.common import launch, log_sigmoid, refuse_dtypes, tanh

TILE = 1024


@triton.jit
def coupling_kernel(
    x_ptr, shift_ptr, raw_ptr, y_ptr, log_det_ptr,
    row, x_stride, shift_stride, raw_stride, active_begin, active, height, width, clamp,
    AFFINE: tl.constexpr, INVERSE: tl.constexpr, CHECKERBOARD: tl.constexpr, FLIP: tl.constexpr,
    SCALE_MAP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    x_ptr += b * x_stride
    y_ptr += b * row
    shift_ptr += b * shift_stride
    if AFFINE:
        raw_ptr += b * raw_stride
    total = tl.zeros((TILE,), tl.float64)
    for begin in range(0, row, TILE):
        i = begin + tl.arange(0, TILE)
        there = i < row
        if CHECKERBOARD:
            in_channel = i % (height * width)
            place = in_channel // width + in_channel % width
            moves = there & (place % 2 == (0 if FLIP else 1))
            j = i
        else:
            j = i - active_begin
            moves = there & (j >= 0) & (j < active)
        x = tl.load(x_ptr + i, mask=there, other=0.0).to(tl.float32)
        t = tl.load(shift_ptr + j, mask=moves, other=0.0).to(tl.float32)
        if AFFINE:
            s = tl.load(raw_ptr + j, mask=moves, other=0.0).to(tl.float32)
            if SCALE_MAP == 1:
                s = clamp * tanh(s / clamp)
            elif SCALE_MAP == 2:
                s = log_sigmoid(s + 2.0)
            total += tl.where(moves, s, 0.0).to(tl.float64)
            moved = (x - t) * tl.exp(-s) if INVERSE else x * tl.exp(s) + t
        else:
            moved = x - t if INVERSE else x + t
        y = tl.where(moves, moved, x)
        tl.store(y_ptr + i, y, mask=there)
    log_det = tl.sum(total, 0).to(tl.float32)
    tl.store(log_det_ptr + b, -log_det if INVERSE else log_det)


def refuses(x: Tensor, shift: Tensor, log_scale: Tensor | None, *_: object) -> str | None:
    if x[:1].numel() >= 2**31 - TILE:
        return "a row of 2^31 elements or more"
    return refuse_dtypes(x)


def run(
    outputs: tuple[Tensor, Tensor],
    x: Tensor, shift: Tensor, log_scale: Tensor | None,
    inverse: bool, split: int, flip: bool, scale_map: int, clamp: float,
) -> None:  # fmt: skip
    y, log_det = outputs
    height, width = (x.shape[2], x.shape[3]) if x.ndim == 4 else (1, x[:1].numel())
    first, count = active_channels(x.shape[1], flip)
    pixels = x[:1, :1].numel()
    x, shift = check.packed_rows(x).flatten(1), check.packed_rows(shift).flatten(1)
    raw = None if log_scale is None else check.packed_rows(log_scale).flatten(1)
    launch(
        coupling_kernel, (x.shape[0],), x.device, x, shift, raw, y, log_det,
        x.shape[1], x.stride(0), shift.stride(0), 0 if raw is None else raw.stride(0),
        first * pixels, count * pixels, height, width, clamp,
        raw is not None, inverse, split == 1, flip, scale_map, TILE,
    )  # fmt: skip


BUDGET = {
    "image float32": {"sm_80": (56, 32), "sm_90": (56, 32), "sm_100": (64, 32), "gfx942": (56, 32)},
    "image bfloat16": {"sm_80": (56, 32), "sm_90": (56, 32), "sm_100": (56, 32), "gfx942": (48, 32)},
    "checkerboard_flip_inverse float16": {"sm_80": (56, 32), "sm_90": (56, 32), "sm_100": (64, 32), "gfx942": (48, 32)},
}

"""coupling_backward in Triton: one pass, a program per piece of a row; nothing is summed."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import exp, launch, refuse_dtypes, sigmoid
from hexad_kernels.triton.coupling import TILE, places, rows, scale, shape_of


@triton.jit
def coupling_backward_kernel(
    grad_ptr, grad_log_det_ptr, value_ptr, shift_ptr, raw_ptr, grad_x_ptr, grad_t_ptr, grad_r_ptr, pieces,
    row, grad_stride, value_stride, shift_stride, raw_stride, active_begin, active, height, width, clamp,
    FROM_INPUT: tl.constexpr, INVERSE: tl.constexpr, CHECKERBOARD: tl.constexpr, FLIP: tl.constexpr,
    SCALE_MAP: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // pieces).to(tl.int64)
    i = tl.program_id(0) % pieces * TILE + tl.arange(0, TILE)
    there = i < row
    moves, j = places(i, there, active_begin, active, height, width, CHECKERBOARD, FLIP)
    # A checkerboard has parameters at passive places too, whose gradients are 0.
    has = there if CHECKERBOARD else moves
    g = tl.zeros((TILE,), tl.float32)
    if grad_ptr is not None:
        g = tl.load(grad_ptr + b * grad_stride + i, mask=there, other=0.0).to(tl.float32)
    from_log_det = 0.0
    if grad_log_det_ptr is not None:
        from_log_det = tl.load(grad_log_det_ptr + b)
    width_of_parameters = row if CHECKERBOARD else active
    if raw_ptr is None:
        grad_x = g
        grad_t = -g if INVERSE else g
    else:
        v = tl.load(value_ptr + b * value_stride + i, mask=moves, other=0.0).to(tl.float32)
        raw = tl.load(raw_ptr + b * raw_stride + j, mask=moves, other=0.0).to(tl.float32)
        s = scale(raw, clamp, SCALE_MAP)
        factor = exp(-s if INVERSE else s)
        grad_x = g * factor
        if INVERSE == FROM_INPUT:
            v -= tl.load(shift_ptr + b * shift_stride + j, mask=moves, other=0.0).to(tl.float32)
        if FROM_INPUT:
            v *= factor
        if INVERSE:
            grad_t = -grad_x
            grad_s = -(g * v) - from_log_det
        else:
            grad_t = g
            grad_s = g * v + from_log_det
        if SCALE_MAP == 1:
            bounded = s / clamp
            grad_s *= 1.0 - bounded * bounded
        elif SCALE_MAP == 2:
            grad_s *= sigmoid(-(raw + 2.0))
        tl.store(grad_r_ptr + b * width_of_parameters + j, tl.where(moves, grad_s, 0.0), mask=has)
    tl.store(grad_x_ptr + b * row + i, tl.where(moves, grad_x, g), mask=there)
    tl.store(grad_t_ptr + b * width_of_parameters + j, tl.where(moves, grad_t, 0.0), mask=has)


def refuses(grad_y: Tensor | None, grad_log_det: Tensor | None, value: Tensor, *_: object) -> str | None:
    if value[:1].numel() >= 2**31 - TILE:
        return "a row of 2^31 elements or more"
    return refuse_dtypes(value)


def run(
    outputs: tuple[Tensor, ...],
    grad_y: Tensor | None, grad_log_det: Tensor | None, value: Tensor, shift: Tensor, log_scale: Tensor | None,
    from_input: bool, inverse: bool, split: int, flip: bool, scale_map: int, clamp: float,
) -> None:  # fmt: skip
    place = shape_of(value, flip)
    flat = [rows(t) for t in (grad_y, value, shift, log_scale)]
    log_det = None if grad_log_det is None else grad_log_det.contiguous()
    batch, row = value.shape[0], value[:1].numel()
    pieces = max(1, triton.cdiv(row, TILE))
    launch(
        coupling_backward_kernel, (batch * pieces,), value.device,
        flat[0], log_det, *flat[1:], *outputs[:2], outputs[2] if len(outputs) > 2 else None, pieces,
        row, *(0 if t is None else t.stride(0) for t in flat), *place, clamp,
        from_input, inverse, split == 1, flip, scale_map, TILE, num_warps=8,
    )  # fmt: skip


BUDGET = {
    "image float32": {"sm_80": (48, 0), "sm_90": (48, 0), "sm_100": (48, 0), "gfx942": (40, 0)},
}

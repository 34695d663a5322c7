"""norm in Triton. A row (for group: a group) that fits in registers is read once, by one program, with narrow rows
side by side in it. Longer rows go in pieces of a fixed size: one launch leaves each piece's mean and squared
deviation, a second one merges them in order and normalises. So sums depend on the row's length alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels import check
from hexad_kernels.norm import GROUP as GROUP_KIND
from hexad_kernels.triton.common import launch, refuse_dtypes, sigmoid

ELEMENTS = 2048  # of a program with narrow rows
LONGEST = 16384  # row that one program holds
PIECE = 8192


@triton.jit
def affine(
    n, x_row, i, there, w_ptr, b_ptr, scale_ptr, shift_ptr, per_batch, group_channels, space, scale_stride,
    shift_stride, GROUP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """What follows the normalisation of elements i of rows x_row."""
    batch = x_row // per_batch
    if GROUP:
        i = (x_row % per_batch).to(tl.int32) * group_channels + i // space
    if w_ptr is not None:
        n *= tl.load(w_ptr + i, mask=there, other=0.0).to(tl.float32)
    if b_ptr is not None:
        n += tl.load(b_ptr + i, mask=there, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        n *= 1.0 + tl.load(scale_ptr + batch * scale_stride + i, mask=there, other=0.0).to(tl.float32)
    if shift_ptr is not None:
        n += tl.load(shift_ptr + batch * shift_stride + i, mask=there, other=0.0).to(tl.float32)
    if SILU:
        n *= sigmoid(n)
    return n


@triton.jit
def inverse_root(x):
    return tl.div_rn(1.0, tl.sqrt_rn(x))


@triton.jit
def norm_kernel(
    x_ptr, w_ptr, b_ptr, scale_ptr, shift_ptr, y_ptr, rows, size, x_stride, per_batch, group_channels, space,
    scale_stride, shift_stride, eps,
    RMS: tl.constexpr, GROUP: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    i = tl.arange(0, SIZE)[None, :]
    there = (row < rows) & (i < size)
    x = tl.load(x_ptr + row * x_stride + i, mask=there, other=0.0).to(tl.float32)
    if not RMS:
        mean = tl.sum(x, 1) / size
        x = tl.where(there, x - mean[:, None], 0.0)
    n = x * inverse_root(tl.sum(x * x, 1) / size + eps)[:, None]
    y = affine(
        n, row, i, there, w_ptr, b_ptr, scale_ptr, shift_ptr, per_batch, group_channels, space, scale_stride,
        shift_stride, GROUP, SILU,
    )  # fmt: skip
    tl.store(y_ptr + row * size + i, y, mask=there)


@triton.jit
def statistics_kernel(
    x_ptr, means_ptr, squares_ptr, size, x_stride, pieces, RMS: tl.constexpr, PIECE: tl.constexpr
):  # fmt: skip
    row = (tl.program_id(0) // pieces).to(tl.int64)
    i = tl.program_id(0) % pieces * PIECE + tl.arange(0, PIECE)
    there = i < size
    x = tl.load(x_ptr + row * x_stride + i, mask=there, other=0.0).to(tl.float32)
    if not RMS:
        mean = tl.sum(x, 0) / tl.sum(there.to(tl.int32), 0)
        x = tl.where(there, x - mean, 0.0)
        tl.store(means_ptr + tl.program_id(0), mean)
    tl.store(squares_ptr + tl.program_id(0), tl.sum(x * x, 0))


@triton.jit
def pieces_kernel(
    x_ptr, w_ptr, b_ptr, scale_ptr, shift_ptr, y_ptr, means_ptr, squares_ptr, size, x_stride, per_batch,
    group_channels, space, scale_stride, shift_stride, eps, pieces,
    RMS: tl.constexpr, GROUP: tl.constexpr, SILU: tl.constexpr, PIECE: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // pieces).to(tl.int64)
    k = tl.arange(0, PIECES)
    counted = k < pieces
    square = tl.load(squares_ptr + row * pieces + k, mask=counted, other=0.0)
    i = tl.program_id(0) % pieces * PIECE + tl.arange(0, PIECE)
    there = i < size
    x = tl.load(x_ptr + row * x_stride + i, mask=there, other=0.0).to(tl.float32)
    if not RMS:
        count = tl.minimum(size - k * PIECE, PIECE).to(tl.float32)
        means = tl.load(means_ptr + row * pieces + k, mask=counted, other=0.0)
        mean = tl.sum(tl.where(counted, means * (count / size), 0.0), 0)
        away = tl.where(counted, means - mean, 0.0)
        square += tl.where(counted, away * away * count, 0.0)
        x -= mean
    n = x * inverse_root(tl.sum(square, 0) / size + eps)
    y = affine(
        n, row, i, there, w_ptr, b_ptr, scale_ptr, shift_ptr, per_batch, group_channels, space, scale_stride,
        shift_stride, GROUP, SILU,
    )  # fmt: skip
    tl.store(y_ptr + row * size + i, y, mask=there)


def row_size(x: Tensor, kind: int, num_groups: int) -> int:
    return x[:1].numel() // num_groups if kind == GROUP_KIND else x.shape[-1]


def refuses(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: int, eps: float, num_groups: int, *_: object
) -> str | None:
    if row_size(x, kind, num_groups) > PIECE * 4096:
        return f"rows of {row_size(x, kind, num_groups)} elements, its pieces add up to {PIECE * 4096}"
    return refuse_dtypes(x)


def run(
    outputs: tuple[Tensor],
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: int, eps: float, num_groups: int,
    scale: Tensor | None, shift: Tensor | None, activation: int,
) -> None:  # fmt: skip
    if x.numel() == 0:
        return
    group, size = kind == GROUP_KIND, row_size(x, kind, num_groups)
    x = x.contiguous() if group else check.matrix(x)
    stride = size if x.is_contiguous() else x.stride(0)
    rows = x.numel() // size
    # Rows that share a batch row's scale and shift; x of one dimension is a row of its own.
    per_batch = num_groups if group else rows // x.shape[0] if x.ndim > 1 else 1
    group_channels, space = (x.shape[1] // num_groups, x[:1, :1].numel()) if group else (1, 1)
    parameters = [t if t is None else t.contiguous() for t in (weight, bias)]
    modulation = [t if t is None else check.matrix(t) for t in (scale, shift)]
    strides = [0 if t is None else t.stride(0) for t in modulation]
    places = (per_batch, group_channels, space, *strides, eps)
    options = (kind == 1, group, activation == 1)
    width = triton.next_power_of_2(size)
    if size <= LONGEST:
        count = max(1, ELEMENTS // width)
        launch(
            norm_kernel, (triton.cdiv(rows, count),), x.device, x, *parameters, *modulation, outputs[0],
            rows, size, stride, *places, *options, count, width, num_warps=min(16, max(4, width // 512)),
        )  # fmt: skip
        return
    pieces = triton.cdiv(size, PIECE)
    means, squares = (torch.empty(rows * pieces, dtype=torch.float32, device=x.device) for _ in range(2))
    launch(
        statistics_kernel, (rows * pieces,), x.device, x, means, squares, size, stride, pieces, options[0], PIECE,
        num_warps=8,
    )  # fmt: skip
    launch(
        pieces_kernel, (rows * pieces,), x.device, x, *parameters, *modulation, outputs[0], means, squares,
        size, stride, *places, pieces, *options, PIECE, triton.next_power_of_2(pieces), num_warps=8,
    )  # fmt: skip


BUDGET = {
    "transformer bfloat16": {"sm_80": (48, 32), "sm_90": (48, 32), "sm_100": (48, 32), "gfx942": (32, 16)},
    "unet bfloat16": {"sm_80": (144, 64), "sm_90": (144, 64), "sm_100": (144, 64), "gfx942": (72, 64)},
    "vae bfloat16": {"sm_80": (144, 32), "sm_90": (144, 32), "sm_100": (152, 32), "gfx942": (72, 32)},
}

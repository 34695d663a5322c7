"""linear in Triton for the few rows of a decoding step, where the weight's bytes are all that counts.

Up to 16 rows fill one matrix instruction's operand whatever their number, so a row's bits do not depend on it. The
inputs are split at multiples of 1024, a program per split and tile of outputs, which keeps the whole chip reading; a
second launch adds the splits up in order and applies bias, activation or gate, and residual.

More rows are a dense matrix product, which the vendor's libraries have: torch serves it, and the second launch what
follows it, reading the product once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels import check
from hexad_kernels.activation import GATES
from hexad_kernels.triton.common import INTERPRETED, activate, launch, refuse_dtypes, widen

ROWS = 16
SPLIT = 1024


@triton.jit
def linear_kernel(
    x_ptr, w_ptr, sums_ptr, rows, inputs, outputs, x_row, w_row, splits,
    UP: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(0) % splits
    n = tl.program_id(0) // splits * BN + tl.arange(0, BN)
    m = tl.arange(0, ROWS)
    k = tl.arange(0, BK)
    x_at = x_ptr + m[:, None].to(tl.int64) * x_row + k[None, :]
    w_at = w_ptr + n[None, :].to(tl.int64) * w_row + k[:, None]
    total = tl.zeros((ROWS, BN), tl.float32)
    for begin in range(split * SPLIT, tl.minimum(split * SPLIT + SPLIT, inputs), BK):
        there = begin + k < inputs
        x = tl.load(x_at + begin, mask=(m < rows)[:, None] & there[None, :], other=0.0)
        w = tl.load(w_at + begin, mask=(n < outputs)[None, :] & there[:, None], other=0.0)
        total = tl.dot(widen(x, UP), widen(w, UP), total, input_precision="ieee")
    at = (split * rows + m)[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(sums_ptr + at, total, mask=(m < rows)[:, None] & (n < outputs)[None, :])


@triton.jit
def summed(sums_ptr, bias_ptr, row, i, there, rows, width, splits):
    total = tl.load(sums_ptr + row * width + i, mask=there, other=0.0).to(tl.float32)
    for split in range(1, splits):
        total += tl.load(sums_ptr + (split * rows + row) * width + i, mask=there, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + i, mask=there, other=0.0).to(tl.float32)
    return total


@triton.jit
def finish_kernel(
    sums_ptr, bias_ptr, residual_ptr, y_ptr, rows, width, splits, residual_row,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    outputs = width // 2 if GATE else width
    tiles = tl.cdiv(outputs, TILE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    there = i < outputs
    y = activate(summed(sums_ptr, bias_ptr, row, i, there, rows, width, splits), ACTIVATION)
    if GATE:
        y *= summed(sums_ptr, bias_ptr, row, i + outputs, there, rows, width, splits)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + row * residual_row + i, mask=there, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * outputs + i, y, mask=there)


def finish(
    sums: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None, out: Tensor, rows: int, width: int
) -> tuple[int, tuple[object, ...]]:
    """The programs and arguments of finish_kernel: sums (splits, rows, width) to out."""
    outputs = width // 2 if activation in GATES else width
    tile = min(512, max(64, triton.next_power_of_2(outputs)))
    last = None if residual is None else check.matrix(residual)
    stride = 0 if last is None else outputs if last.is_contiguous() else last.stride(0)
    return rows * triton.cdiv(outputs, tile), (
        sums, None if bias is None else bias.contiguous(), last, out, rows, width, sums.shape[0], stride,
        activation, activation in GATES, tile,
    )  # fmt: skip


def finish_product(product: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None) -> Tensor:
    """What linear does with torch's product, whatever the number of its rows."""
    *leading, width = product.shape
    rows = product.shape[:-1].numel()
    out = product.new_empty(*leading, width // 2 if activation in GATES else width)
    if residual is not None and residual.ndim != 2:
        residual = residual.contiguous()
    programs, arguments = finish(product.view(1, rows, width), bias, activation, residual, out, rows, width)
    launch(finish_kernel, (programs,), out.device, *arguments)
    return out


def row_stride(x: Tensor) -> int:
    """Of check.matrix's result."""
    return x.shape[-1] if x.is_contiguous() else x.stride(0)


def refuses(x: Tensor, weight: Tensor, *_: object) -> str | None:
    if x.shape[:-1].numel() > ROWS:
        return f"{x.shape[:-1].numel()} rows (its kernel takes up to {ROWS}, torch's matrix product the rest)"
    return refuse_dtypes(x)


def run(
    outputs: tuple[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None
) -> None:
    rows, (width, inputs) = x.shape[:-1].numel(), weight.shape
    x, weight = check.matrix(x), check.matrix(weight)
    splits = max(1, triton.cdiv(inputs, SPLIT))
    sums = torch.empty((splits, rows, width), dtype=torch.float32, device=x.device)
    keys, stages = (64, 2) if x.dtype == torch.float32 else (128, 4)
    launch(
        linear_kernel, (triton.cdiv(width, 32) * splits if rows else 0,), x.device,
        x, weight, sums, rows, inputs, width, row_stride(x), row_stride(weight), splits,
        INTERPRETED, ROWS, 32, keys, SPLIT, num_stages=stages,
    )  # fmt: skip
    programs, arguments = finish(sums, bias, activation, residual, outputs[0], rows, width)
    launch(finish_kernel, (programs,), x.device, *arguments)


BUDGET = {
    "token bfloat16": {
        "sm_80": (56, 37888),
        "sm_90": (48, 37888),
        "sm_100": (48, 37888),
        "gfx942": (96, 37888),
        "matrix": "narrow",
    },
}

"""maskedconv in Triton: a matrix product over the taps in the mask and the channels, gathered as it goes: pixels are
its rows. All forms, the whole image, a row, a pixel, sum in the same order with the same instruction, so a pixel has
the same bits in each. Weights outside the mask are never read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.maskedconv import taps_before
from hexad_kernels.triton.common import INTERPRETED, launch, refuse_dtypes, widen

# Fewer than 64 rows keep every chip at its narrow matrix instruction: wide and narrow ones may round differently.
PIXELS = 32


@triton.jit
def maskedconv_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, pixels, channels, outputs, height, width, kh, kw, taps, top, left, rows, columns,
    x_batch, x_channel, x_row, x_col, w_out, w_in, w_row, w_col, tiles,
    UP: tl.constexpr, BP: tl.constexpr, BO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    pixel = (tl.program_id(0) // tiles).to(tl.int64) * BP + tl.arange(0, BP)
    o = tl.program_id(0) % tiles * BO + tl.arange(0, BO)
    here = pixel < pixels
    area = rows * columns
    b, place = pixel // area, pixel % area
    h, w = top + place // columns, left + place % columns
    c = tl.arange(0, BC)
    total = tl.zeros((BP, BO), tl.float32)
    steps = tl.cdiv(channels, BC)
    for step in range(0, taps * steps):
        tap, begin = step // steps, step % steps * BC
        i, j = tap // kw, tap % kw
        at_h, at_w = h + i - kh // 2, w + j - kw // 2
        inside = here & (at_h >= 0) & (at_w >= 0) & (at_w < width)
        there = begin + c < channels
        x = tl.load(
            x_ptr + (b * x_batch + at_h * x_row + at_w * x_col)[:, None] + (begin + c)[None, :] * x_channel,
            mask=inside[:, None] & there[None, :], other=0.0,
        )  # fmt: skip
        weight = tl.load(
            w_ptr + o[None, :].to(tl.int64) * w_out + (begin + c)[:, None] * w_in + i * w_row + j * w_col,
            mask=there[:, None] & (o < outputs)[None, :], other=0.0,
        )  # fmt: skip
        total = tl.dot(widen(x, UP), widen(weight, UP), total, input_precision="ieee")
    if bias_ptr is not None:
        total += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    at = (b * outputs * area + place)[:, None] + o[None, :].to(tl.int64) * area
    tl.store(y_ptr + at, total, mask=here[:, None] & (o < outputs)[None, :])


def refuses(x: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> str | None:
    return refuse_dtypes(x)


def run(
    outputs: tuple[Tensor],
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: int, row: int | None, col: int | None,
) -> None:  # fmt: skip
    batch, channels, height, width = x.shape
    out, _, kh, kw = weight.shape
    rows, columns = height if row is None else 1, width if col is None else 1
    pixels = batch * rows * columns
    # A pixel alone: narrow tiles, for more of them.
    few = pixels <= 16
    wide = 16 if few else min(64, max(16, triton.next_power_of_2(out)))
    tiles = triton.cdiv(out, wide)
    launch(
        maskedconv_kernel, (triton.cdiv(pixels, 16 if few else PIXELS) * tiles,), x.device,
        x, weight, None if bias is None else bias.contiguous(), outputs[0],
        pixels, channels, out, height, width, kh, kw, taps_before(mask, kh, kw), row or 0, col or 0, rows, columns,
        *x.stride(), *weight.stride(), tiles,
        INTERPRETED, 16 if few else PIXELS, wide, 16, num_stages=2 if x.dtype == torch.float32 else 3,
    )  # fmt: skip


BUDGET = {
    "digits bfloat16": {
        "sm_80": (136, 5120),
        "sm_90": (120, 5120),
        "sm_100": (120, 5120),
        "gfx942": (80, 3072),
        "matrix": "narrow",
    },
}

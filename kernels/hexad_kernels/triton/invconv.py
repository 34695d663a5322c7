"""invconv in Triton: a matrix product whose columns are the pixels of all images, in tiles of a fixed shape with the
channels in order: a pixel's bits depend on the pixel alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import INTERPRETED, launch, refuse_dtypes, widen


@triton.jit
def invconv_kernel(
    x_ptr, w_ptr, bias_ptr, y_ptr, pixels, channels, space, x_batch, w_row, w_col, tiles,
    UP: tl.constexpr, BO: tl.constexpr, BS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) % tiles * BO + tl.arange(0, BO)
    pixel = (tl.program_id(0) // tiles).to(tl.int64) * BS + tl.arange(0, BS)
    here = pixel < pixels
    b, s = pixel // space, pixel % space
    c = tl.arange(0, BC)
    total = tl.zeros((BO, BS), tl.float32)
    for begin in range(0, channels, BC):
        left = channels - begin
        w = tl.load(
            w_ptr + o[:, None].to(tl.int64) * w_row + (begin + c)[None, :] * w_col,
            mask=(o < channels)[:, None] & (c < left)[None, :], other=0.0,
        )  # fmt: skip
        x = tl.load(
            x_ptr + b[None, :] * x_batch + (begin + c)[:, None].to(tl.int64) * space + s[None, :],
            mask=here[None, :] & (c < left)[:, None], other=0.0,
        )  # fmt: skip
        total = tl.dot(widen(w, UP), widen(x, UP), total, input_precision="ieee")
    if bias_ptr is not None:
        total += tl.load(bias_ptr + o, mask=o < channels, other=0.0).to(tl.float32)[:, None]
    at = b[None, :] * channels * space + o[:, None].to(tl.int64) * space + s[None, :]
    tl.store(y_ptr + at, total, mask=here[None, :] & (o < channels)[:, None])


def tile(dtype: torch.dtype, channels: int) -> dict[str, int]:
    """Output channels, pixels and input channels of a tile. A pixel's sum runs over input channels in the same order
    whatever the tile."""
    outputs = min(64, max(16, triton.next_power_of_2(channels)))
    if dtype == torch.float32:
        return {"BO": min(outputs, 32), "BS": 64, "BC": 32, "num_stages": 2}
    return {"BO": outputs, "BS": 64, "BC": 32 if channels > 16 else 16, "num_stages": 3}


def refuses(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    return refuse_dtypes(x)


def run(outputs: tuple[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    channels, space = x.shape[1], x[:1, :1].numel()
    pixels = x.shape[0] * space
    if not pixels or not channels:
        return
    x = x if x[0].is_contiguous() else x.contiguous()
    shape = tile(x.dtype, channels)
    tiles = triton.cdiv(channels, shape["BO"])
    launch(
        invconv_kernel, (tiles * triton.cdiv(pixels, shape["BS"]),), x.device,
        x, weight, None if bias is None else bias.contiguous(), outputs[0],
        pixels, channels, space, x.stride(0), *weight.stride(), tiles,
        INTERPRETED, shape["BO"], shape["BS"], shape["BC"], num_stages=shape["num_stages"],
    )  # fmt: skip


BUDGET = {
    "wide_image bfloat16": {
        "sm_80": (104, 17408),
        "sm_90": (72, 25600),
        "sm_100": (56, 25600),
        "gfx942": (88, 17408),
        "matrix": "narrow",
    },
}

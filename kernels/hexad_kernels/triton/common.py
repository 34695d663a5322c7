"""What every Triton kernel shares: launches, and elementary functions from exp and log alone (libdevice cannot be
interpreted). The interpreter takes bfloat16's bits for integers, so a kernel converts what it loads to float32 at
once, or, where a matrix instruction wants bfloat16, through widen()."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def launch(kernel: Any, grid: Sequence[int], device: torch.device, *args: Any, **options: Any) -> None:
    """kernel[grid](...) on the tensors' device, on its current stream; an empty grid does nothing."""
    if 0 in grid:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[tuple(grid)](*args, **options)
    else:
        kernel[tuple(grid)](*args, **options)


def refuse_dtypes(*tensors: Tensor | None) -> str | None:
    for t in tensors:
        if t is not None and t.dtype not in DTYPES:
            return f"{t.dtype} (its kernels are for float32, bfloat16 and float16)"
    return None


@triton.jit
def widen(x, UP: tl.constexpr):
    return x.to(tl.float32) if UP else x


@triton.jit
def tanh(x):
    # 1 - 2 / (e^2|x| + 1) cancels near 0; there a continued fraction takes over.
    z = x * x
    num = ((z + 378.0) * z + 17325.0) * z + 135135.0
    den = ((28.0 * z + 3150.0) * z + 62370.0) * z + 135135.0
    a = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    return tl.where(a < 0.625, x * (num / den), tl.where(x < 0.0, -large, large))


@triton.jit
def log1p_unit(y):
    # ln(1 + y), 0 <= y <= 1: y ln(u) / (u - 1) with u = 1 + y undoes the rounding of u.
    u = 1.0 + y
    d = u - 1.0
    return tl.where(d == 0.0, y, tl.log(u) * (y / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def log_sigmoid(x):
    return tl.where(x < 0.0, x, 0.0) - log1p_unit(tl.exp(-tl.abs(x)))


@cache
def target(device: torch.device) -> str:
    """The chip that tiles are chosen for: "sm_80", "sm_90", "sm_100" or "gfx942", the nearest one below. Without a
    GPU, under the interpreter, "sm_80"."""
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major = torch.cuda.get_device_capability(device)[0]
    return "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"

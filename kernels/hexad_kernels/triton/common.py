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


FLOAT8 = {torch.float8_e4m3fn: 1, torch.float8_e5m2: 2}


def raw(cache: Tensor) -> Tensor:
    """A float8 cache as its bytes: kernels convert them, as not every chip can."""
    return cache.view(torch.uint8) if cache.dtype in FLOAT8 else cache


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


@triton.jit
def exp(x):
    # The hardware's 2^x after a reduction in two steps: tl.exp scales x before, and its error grows with |x|.
    x = tl.where(x > 89.0, 89.0, tl.where(x < -104.0, -104.0, x))
    n = tl.floor(x * 1.44269504 + 0.5)
    r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
    half = tl.floor(n * 0.5)
    return tl.exp2(r * 1.44269504) * tl.exp2(half) * tl.exp2(n - half)


@triton.jit
def sigmoid(x):
    e = exp(-tl.abs(x))
    return tl.div_rn(tl.where(x < 0.0, e, 1.0), 1.0 + e)


@triton.jit
def round_even(x):
    # To the nearest integer, ties to even, for |x| < 2^22.
    return (x + 12582912.0) - 12582912.0


@triton.jit
def from_float8(byte, KIND: tl.constexpr):
    """float32 of an e4m3fn (1) or e5m2 (2), exactly, on chips that don't know them too. As bits of a float16 an e5m2
    has its value, an e4m3 2^-8 of it."""
    u = byte.to(tl.uint16)
    if KIND == 1:
        x = (((u & 0x7F) << 7) | ((u & 0x80) << 8)).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        x = tl.where((u & 0x7F) == 0x7F, float("nan"), x)
    else:
        x = (u << 8).to(tl.float16, bitcast=True).to(tl.float32)
    return x


@triton.jit
def to_float8(x, KIND: tl.constexpr):
    """The byte of the nearest one, ties to even, of a number in its range."""
    FRACTION: tl.constexpr = 4 - KIND
    BIAS: tl.constexpr = 7 if KIND == 1 else 15
    u = x.to(tl.int32, bitcast=True)
    size = u & 0x7FFFFFFF
    half = (1 << (22 - FRACTION)) - 1 + ((size >> (23 - FRACTION)) & 1)
    normal = ((size + half) >> (23 - FRACTION)) - ((127 - BIAS) << FRACTION)
    unit = tl.abs(x) * (1 << (BIAS - 1))  # of the least normal number
    below = round_even(tl.where(unit < 1.0, unit, 0.0) * (1 << FRACTION)).to(tl.int32)
    return (tl.where(unit < 1.0, below, normal) | ((u >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """Of hexad_kernels.activation, by its number; gates too."""
    if ACTIVATION == 1:
        z = tl.where(z < 0.0, 0.0, z)
    elif ACTIVATION == 2 or ACTIVATION == 8:
        z = z * (0.5 * (1.0 + tl.erf(z * 0.70710678)))
    elif ACTIVATION == 3:
        z = z * (0.5 * (1.0 + tanh(0.79788456 * (z + 0.044715 * z * z * z))))
    elif ACTIVATION == 4 or ACTIVATION == 7:
        z = z * sigmoid(z)
    elif ACTIVATION == 5:
        z = tanh(z)
    elif ACTIVATION == 6:
        z = sigmoid(z)
    return z


@triton.jit
def philox(c0, c1, c2, c3, key):
    """Philox4x32-10 of four uint32 counter words under an int64 key."""
    k0 = (key & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3

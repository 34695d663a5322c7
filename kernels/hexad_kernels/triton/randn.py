"""randn in Triton: the same words, and with them the same bits, as on the CPU (csrc/cpu/philox.h).

The float64 part has the CPU's operations in the CPU's order. A compiler that fused a product and a sum would round
once less, so the launch says enable_fp_fusion=False.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import launch, philox

BLOCKS = 128
TURN = tl.constexpr(2 * math.pi / 2**32)


@triton.jit
def minus_two_log(w):
    # u = 2^e m, m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh s by its series to s^17.
    u = (w.to(tl.float64) + 0.5) * (1.0 / 4294967296.0)
    shifted = u.to(tl.int64, bitcast=True) + (0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
    m = ((shifted & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD).to(tl.float64, bitcast=True)
    exponent = (shifted >> 52).to(tl.float64) - 1023.0
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = tl.full(z.shape, 1.0 / 17, tl.float64)
    p = p * z + 1.0 / 15
    p = p * z + 1.0 / 13
    p = p * z + 1.0 / 11
    p = p * z + 1.0 / 9
    p = p * z + 1.0 / 7
    p = p * z + 1.0 / 5
    p = p * z + 1.0 / 3
    p = p * z + 1.0
    return -2.0 * (exponent * 0.69314718055994530942 + 2.0 * s * p)


@triton.jit
def sin_cos(w):
    # Of 2 pi (w + 1/2) 2^-32: the nearest quadrant comes off the integer, Taylor has the rest.
    turned = (w.to(tl.int64) + 0x20000000) & 0xFFFFFFFF
    x = (((turned & 0x3FFFFFFF) - 0x20000000).to(tl.float64) + 0.5) * TURN
    z = x * x
    s = tl.full(z.shape, -1.0 / 1307674368000, tl.float64)
    s = s * z + 1.0 / 6227020800
    s = s * z - 1.0 / 39916800
    s = s * z + 1.0 / 362880
    s = s * z - 1.0 / 5040
    s = s * z + 1.0 / 120
    s = s * z - 1.0 / 6
    s = s * z * x + x
    c = tl.full(z.shape, -1.0 / 87178291200, tl.float64)
    c = c * z + 1.0 / 479001600
    c = c * z - 1.0 / 3628800
    c = c * z + 1.0 / 40320
    c = c * z - 1.0 / 720
    c = c * z + 1.0 / 24
    c = c * z - 1.0 / 2
    c = c * z + 1.0
    swap = (turned & 0x40000000) != 0
    sine, cosine = tl.where(swap, c, s), tl.where(swap, s, c)
    sine_down = (turned & 0x80000000) != 0
    cosine_down = ((turned ^ (turned << 1)) & 0x80000000) != 0
    return tl.where(sine_down, -sine, sine), tl.where(cosine_down, -cosine, cosine)


@triton.jit
def box_muller(radius, angle):
    r = tl.sqrt(minus_two_log(radius))
    sine, cosine = sin_cos(angle)
    return (r * cosine).to(tl.float32), (r * sine).to(tl.float32)


@triton.jit
def block_words(block, offset, seed):
    """The four words of a block, all int64."""
    high = tl.zeros_like(block) + offset
    return philox(
        (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32),
        (high & 0xFFFFFFFF).to(tl.uint32), (high >> 32).to(tl.uint32), seed,
    )  # fmt: skip


@triton.jit
def normal_blocks(block, offset, seed):
    """(blocks, 2, 2) normals: four of each block, in order."""
    c0, c1, c2, c3 = block_words(block, offset, seed)
    z0, z1 = box_muller(c0, c1)
    z2, z3 = box_muller(c2, c3)
    return tl.join(tl.join(z0, z2), tl.join(z1, z3))


@triton.jit
def normals_at(at, offset, seed):
    """The normals at places `at` of a row: each makes a pair of its own, which costs twice what blocks do."""
    c0, c1, c2, c3 = block_words(at >> 2, offset, seed)
    second = (at & 2) != 0
    z0, z1 = box_muller(tl.where(second, c2, c0), tl.where(second, c3, c1))
    return tl.where((at & 1) != 0, z1, z0)


@triton.jit(do_not_specialize=["offset"])
def randn_kernel(seeds_ptr, out_ptr, seed_stride, row, pieces, offset, BLOCKS: tl.constexpr):
    b = (tl.program_id(0) // pieces).to(tl.int64)
    block = (tl.program_id(0) % pieces).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    seed = tl.load(seeds_ptr + b * seed_stride)
    z = normal_blocks(block, offset, seed)
    at = (
        4 * block[:, None, None]
        + 2 * tl.arange(0, 2)[None, :, None]
        + tl.arange(0, 2)[None, None, :]
    )  # fmt: skip
    tl.store(out_ptr + b * row + at, z, mask=at < row)


def refuses(seeds: Tensor, shape: Sequence[int], offset: int) -> str | None:
    return None


def run(outputs: tuple[Tensor], seeds: Tensor, shape: Sequence[int], offset: int) -> None:
    row = math.prod(shape)
    pieces = triton.cdiv(row, 4 * BLOCKS)
    launch(
        randn_kernel, (seeds.shape[0] * pieces,), seeds.device, seeds, outputs[0], seeds.stride(0), row, pieces,
        offset, BLOCKS, enable_fp_fusion=False,
    )  # fmt: skip


BUDGET = {
    "latents float32": {"sm_80": (48, 1024), "sm_90": (48, 1024), "sm_100": (48, 1024), "gfx942": (32, 1024)},
}

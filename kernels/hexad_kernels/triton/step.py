"""step in Triton: one pass over the state, with the step's coefficients read on the device. Noise from seeds is made on
the way, with randn's bits: so nothing is fused but what is written as an fma.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.step import dense
from hexad_kernels.triton.common import launch, refuse_dtypes
from hexad_kernels.triton.randn import normal_blocks, normals_at

TILE = 1024


@triton.jit
def term(total, c, value):
    # A coefficient of 0 leaves its input out, NaN and infinity too.
    return tl.where(c == 0.0, total, tl.fma(tl.zeros_like(total) + c, value, total))


@triton.jit
def from_memory(total, c, ptr, i, there):
    if ptr is not None:
        total = term(total, c, tl.load(ptr + i, mask=there, other=0.0))
    return total


@triton.jit
def update(row_ptr, out_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, z, i, there):
    total = term(tl.zeros_like(x), tl.load(row_ptr), x)
    total = term(total, tl.load(row_ptr + 1), m)
    total = term(total, tl.load(row_ptr + 2), p)
    total = from_memory(total, tl.load(row_ptr + 3), h1_ptr, i, there)
    total = from_memory(total, tl.load(row_ptr + 4), h2_ptr, i, there)
    total = from_memory(total, tl.load(row_ptr + 5), h3_ptr, i, there)
    total = from_memory(total, tl.load(row_ptr + 6), last_ptr, i, there)
    total = term(total, tl.load(row_ptr + 7), z)
    tl.store(out_ptr + i, total, mask=there)


@triton.jit
def made_noise(seeds_ptr, offset, begin, i, size, row_size, WHOLE: tl.constexpr, TILE: tl.constexpr):
    """Of a tile's elements; WHOLE: rows begin on blocks of four normals."""
    if WHOLE:
        four = begin + 4 * tl.arange(0, TILE // 4)
        row = four // row_size
        seed = tl.load(seeds_ptr + row, mask=four < size, other=0)
        z = tl.reshape(normal_blocks((four - row * row_size) >> 2, offset, seed), (TILE,))
    else:
        row = i // row_size
        z = normals_at(i - row * row_size, offset, tl.load(seeds_ptr + row, mask=i < size, other=0))
    return z


@triton.jit(do_not_specialize=["index", "most"])
def step_kernel(
    table_ptr, index, place_ptr, most, x_ptr, output_ptr, uncond_ptr, h1_ptr, h2_ptr, h3_ptr, last_ptr, noise_ptr,
    seeds_ptr, out0_ptr, out1_ptr, out2_ptr, size, row_size, WHOLE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    begin = tl.program_id(0).to(tl.int64) * TILE
    i = begin + tl.arange(0, TILE)
    there = i < size
    if place_ptr is not None:
        index = tl.minimum(tl.maximum(tl.load(place_ptr).to(tl.int64), 0), most)
    row = table_ptr + index * 32
    x = tl.load(x_ptr + i, mask=there, other=0.0)
    m = tl.load(output_ptr + i, mask=there, other=0.0).to(tl.float32)
    if uncond_ptr is not None:
        u = tl.load(uncond_ptr + i, mask=there, other=0.0).to(tl.float32)
        m = tl.fma(tl.zeros_like(u) + tl.load(row + 3), m - u, u)
    p = term(term(tl.zeros_like(x), tl.load(row), x), tl.load(row + 1), m)
    clip = tl.load(row + 2)
    p = tl.where(p > clip, clip, tl.where(p < -clip, -clip, p))
    z = tl.zeros((TILE,), tl.float32)
    if noise_ptr is not None:
        z = tl.load(noise_ptr + i, mask=there, other=0.0)
    if seeds_ptr is not None:
        noisy = tl.load(row + 15) != 0.0
        if out1_ptr is not None:
            noisy |= tl.load(row + 23) != 0.0
        if out2_ptr is not None:
            noisy |= tl.load(row + 31) != 0.0
        if noisy:
            z = made_noise(seeds_ptr, index + 1, begin, i, size, row_size, WHOLE, TILE)
    update(row + 8, out0_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, z, i, there)
    if out1_ptr is not None:
        update(row + 16, out1_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, z, i, there)
    if out2_ptr is not None:
        update(row + 24, out2_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, z, i, there)


def refuses(table: Tensor, index: int, x: Tensor, model_output: Tensor, *_: object) -> str | None:
    if x.dtype != torch.float32:
        return f"{x.dtype} (the state is float32)"
    return refuse_dtypes(model_output)


def run(
    outputs: tuple[Tensor, ...],
    table: Tensor, index: int, x: Tensor, model_output: Tensor, uncond: Tensor | None, h1: Tensor | None,
    h2: Tensor | None, h3: Tensor | None, last: Tensor | None, noise: Tensor | None, count: int,
    place: Tensor | None, seeds: Tensor | None,
) -> None:  # fmt: skip
    inputs = dense(table, x, model_output, uncond, h1, h2, h3, last, noise, seeds)
    row = x.numel() // max(len(x), 1) if x.ndim else 1
    out0, out1, out2 = (*outputs, None, None)[:3]
    launch(
        step_kernel, (triton.cdiv(x.numel(), TILE),), x.device,
        inputs[0], index, place, len(table) - 1, *inputs[1:], out0, out1, out2, x.numel(), row,
        row % 4 == 0, TILE, enable_fp_fusion=False,
    )  # fmt: skip


BUDGET = {
    "everything float32": {"sm_80": (72, 0), "sm_90": (72, 0), "sm_100": (72, 0), "gfx942": (64, 0)},
    "seeds float32": {"sm_80": (76, 1024), "sm_90": (76, 1024), "sm_100": (76, 1024), "gfx942": (48, 1024)},
    "seeds_ragged float32": {"sm_80": (148, 0), "sm_90": (148, 0), "sm_100": (148, 0), "gfx942": (72, 0)},
}

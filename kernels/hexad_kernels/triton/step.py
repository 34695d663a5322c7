"""step in Triton: one pass over the state, with the step's coefficients read on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.step import dense
from hexad_kernels.triton.common import launch, refuse_dtypes

TILE = 1024


@triton.jit
def term(total, c, value):
    # A coefficient of 0 leaves its input out, NaN and infinity too.
    return total + tl.where(c == 0.0, 0.0, c * value)


@triton.jit
def from_memory(total, c, ptr, i, there):
    if ptr is not None:
        total = term(total, c, tl.load(ptr + i, mask=there, other=0.0))
    return total


@triton.jit
def update(row_ptr, out_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, noise_ptr, i, there):
    total = term(tl.zeros_like(x), tl.load(row_ptr), x)
    total = term(total, tl.load(row_ptr + 1), m)
    total = term(total, tl.load(row_ptr + 2), p)
    total = from_memory(total, tl.load(row_ptr + 3), h1_ptr, i, there)
    total = from_memory(total, tl.load(row_ptr + 4), h2_ptr, i, there)
    total = from_memory(total, tl.load(row_ptr + 5), h3_ptr, i, there)
    total = from_memory(total, tl.load(row_ptr + 6), last_ptr, i, there)
    total = from_memory(total, tl.load(row_ptr + 7), noise_ptr, i, there)
    tl.store(out_ptr + i, total, mask=there)


@triton.jit(do_not_specialize=["index", "most"])
def step_kernel(
    table_ptr, index, place_ptr, most, x_ptr, output_ptr, uncond_ptr, h1_ptr, h2_ptr, h3_ptr, last_ptr, noise_ptr,
    out0_ptr, out1_ptr, out2_ptr, size, TILE: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = i < size
    if place_ptr is not None:
        index = tl.minimum(tl.maximum(tl.load(place_ptr).to(tl.int64), 0), most)
    row = table_ptr + index * 32
    x = tl.load(x_ptr + i, mask=there, other=0.0)
    m = tl.load(output_ptr + i, mask=there, other=0.0).to(tl.float32)
    if uncond_ptr is not None:
        u = tl.load(uncond_ptr + i, mask=there, other=0.0).to(tl.float32)
        m = u + tl.load(row + 3) * (m - u)
    p = term(term(tl.zeros_like(x), tl.load(row), x), tl.load(row + 1), m)
    clip = tl.load(row + 2)
    p = tl.where(p > clip, clip, tl.where(p < -clip, -clip, p))
    update(row + 8, out0_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, noise_ptr, i, there)
    if out1_ptr is not None:
        update(row + 16, out1_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, noise_ptr, i, there)
    if out2_ptr is not None:
        update(row + 24, out2_ptr, x, m, p, h1_ptr, h2_ptr, h3_ptr, last_ptr, noise_ptr, i, there)


def refuses(table: Tensor, index: int, x: Tensor, model_output: Tensor, *rest: object) -> str | None:
    if x.dtype != torch.float32:
        return f"{x.dtype} (the state is float32)"
    if rest[-1] is not None:
        return "seeds: its kernel takes a noise tensor"
    return refuse_dtypes(model_output)


def run(
    outputs: tuple[Tensor, ...],
    table: Tensor, index: int, x: Tensor, model_output: Tensor, uncond: Tensor | None, h1: Tensor | None,
    h2: Tensor | None, h3: Tensor | None, last: Tensor | None, noise: Tensor | None, count: int,
    place: Tensor | None, seeds: Tensor | None,
) -> None:  # fmt: skip
    inputs = dense(table, x, model_output, uncond, h1, h2, h3, last, noise)
    out0, out1, out2 = (*outputs, None, None)[:3]
    launch(
        step_kernel, (triton.cdiv(x.numel(), TILE),), x.device,
        inputs[0], index, place, len(table) - 1, *inputs[1:], out0, out1, out2, x.numel(), TILE,
    )  # fmt: skip


BUDGET = {
    "everything float32": {"sm_80": (88, 0), "sm_90": (88, 0), "sm_100": (88, 0), "gfx942": (64, 0)},
}

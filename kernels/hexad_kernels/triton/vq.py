"""vq in Triton: a program holds a few rows and walks the codebook in tiles, a feature at a time, so that differences
are squared as they stand. The nearest entry is carried along, the lower index on ties.

No error can be raised without waiting for the device: a row with a NaN distance gets index -1 and NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels import check
from hexad_kernels.triton.common import launch, refuse_dtypes


@triton.jit
def vq_kernel(
    x_ptr, codebook_ptr, out_ptr, index_ptr, rows, entries, dim, x_row, x_col, entry_row, entry_col,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < rows
    best = tl.full((ROWS,), float("inf"), tl.float32)
    index = tl.zeros((ROWS,), tl.int32)
    wrong = tl.zeros((ROWS,), tl.int32)
    for begin in range(0, entries, ENTRIES):
        entry = begin + tl.arange(0, ENTRIES)
        distance = tl.zeros((ROWS, ENTRIES), tl.float32)
        for d in range(0, dim):
            x = tl.load(x_ptr + row * x_row + d * x_col, mask=here, other=0.0).to(tl.float32)
            c = tl.load(
                codebook_ptr + entry.to(tl.int64) * entry_row + d * entry_col, mask=entry < entries, other=0.0
            ).to(tl.float32)
            away = x[:, None] - c[None, :]
            distance += away * away
        distance = tl.where((entry < entries)[None, :], distance, float("inf"))
        wrong = tl.maximum(wrong, tl.max((distance != distance).to(tl.int32), 1))
        least = tl.min(distance, 1)
        at = tl.min(tl.where(distance == least[:, None], entry[None, :], 2147483647), 1)
        index = tl.where(least < best, at, index)
        best = tl.where(least < best, least, best)
    index = tl.where(wrong > 0, -1, index)
    tl.store(index_ptr + row, index.to(tl.int64), mask=here)
    d = tl.arange(0, D)
    for begin in range(0, dim, D):
        there = here[:, None] & (begin + d < dim)[None, :]
        value = tl.load(
            codebook_ptr + tl.maximum(index, 0).to(tl.int64)[:, None] * entry_row + (begin + d)[None, :] * entry_col,
            mask=there, other=0.0,
        )  # fmt: skip
        value = tl.where(wrong[:, None] > 0, float("nan"), value.to(tl.float32))
        tl.store(out_ptr + row[:, None] * dim + (begin + d)[None, :], value, mask=there)


def refuses(x: Tensor, codebook: Tensor) -> str | None:
    return refuse_dtypes(x)


def run(outputs: tuple[Tensor, Tensor], x: Tensor, codebook: Tensor) -> None:
    out, index = outputs
    rows, dim = index.numel(), x.shape[-1]
    x = check.matrix(x)
    strides = x.stride() if x.ndim == 2 else (dim, 1)
    few = min(64, triton.next_power_of_2(codebook.shape[0]))
    launch(
        vq_kernel, (triton.cdiv(rows, 32),), x.device, x, codebook, out, index, rows, codebook.shape[0], dim,
        *strides, *codebook.stride(), 32, max(16, few), min(64, triton.next_power_of_2(max(1, dim))),
    )  # fmt: skip


BUDGET = {
    "images bfloat16": {"sm_80": (64, 256), "sm_90": (64, 256), "sm_100": (64, 256), "gfx942": (48, 256)},
}

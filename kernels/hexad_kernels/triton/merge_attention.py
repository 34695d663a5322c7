"""merge_attention in Triton: a program per tile of rows and columns."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import launch, refuse_dtypes

TILE = 2048


@triton.jit
def merge_attention_kernel(
    out_a_ptr, lse_a_ptr, out_b_ptr, lse_b_ptr, out_ptr, lse_ptr, count, dim, a_row, a_col, b_row, b_col,
    lse_a_row, lse_b_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = row < count
    lse_a = tl.load(lse_a_ptr + row * lse_a_row, mask=here, other=0.0)
    lse_b = tl.load(lse_b_ptr + row * lse_b_row, mask=here, other=0.0)
    # A NaN on either side makes both weights NaN.
    m = tl.where((lse_a > lse_b) | (lse_a != lse_a), lse_a, lse_b)
    m = tl.where(m == float("-inf"), 0.0, m)
    a, b = tl.exp(lse_a - m), tl.exp(lse_b - m)
    total = a + b
    nothing = total == 0.0
    divisor = tl.where(nothing, 1.0, total)
    if tl.program_id(1) == 0:
        tl.store(lse_ptr + row, tl.where(nothing, float("-inf"), m + tl.log(divisor)), mask=here)
    weight_a, weight_b = (a / divisor)[:, None], (b / divisor)[:, None]
    inside = here[:, None] & (column < dim)[None, :]
    wide = column.to(tl.int64)[None, :]
    # What a side without weight holds is not read.
    out_a = tl.load(out_a_ptr + row[:, None] * a_row + wide * a_col, mask=inside & (weight_a != 0.0), other=0.0)
    out_b = tl.load(out_b_ptr + row[:, None] * b_row + wide * b_col, mask=inside & (weight_b != 0.0), other=0.0)
    out = out_a.to(tl.float32) * weight_a + out_b.to(tl.float32) * weight_b
    tl.store(out_ptr + row[:, None] * dim + wide, out, mask=inside)


def refuses(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> str | None:
    return refuse_dtypes(out_a)


def run(outputs: tuple[Tensor, Tensor], out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    out, lse = outputs
    count, dim = lse.numel(), out.shape[-1]
    out_a, out_b = (t.reshape(count, dim) for t in (out_a, out_b))
    lse_a, lse_b = (t.reshape(-1) for t in (lse_a, lse_b))
    columns = min(max(16, triton.next_power_of_2(dim)), 256)
    rows = TILE // columns
    launch(
        merge_attention_kernel, (triton.cdiv(count, rows), max(1, triton.cdiv(dim, columns))), out.device,
        out_a, lse_a, out_b, lse_b, out, lse, count, dim, *out_a.stride(), *out_b.stride(),
        *lse_a.stride(), *lse_b.stride(), rows, columns,
    )  # fmt: skip


# Registers and shared memory of the largest kernel a case launches, with a tenth to spare.
BUDGET = {
    "long float32": {
        "sm_80": (48, 0),
        "sm_90": (48, 0),
        "sm_100": (48, 0),
        "gfx942": (40, 0),
    },
}

"""linear_packed in Triton: products of one row of inputs with panels, for decoding. A panel's words lie side by side
for its 16 rows, so a program reads memory straight on: 16 outputs, one split of the inputs at multiples of 1024.

Quantised weights meet inputs that a launch before rounds to 8 bits, group by group, as the CPU's kernels do: a
group's sum is of integers below 2^24, exact in float32 in any order. Splits are added up in order by linear's second
launch. Several rows read the panels once each, from the cache at best; many rows want the dense weight back.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels import check
from hexad_kernels.linear_packed import INPUT_GROUPS
from hexad_kernels.pack import BFLOAT, INT4, INT8
from hexad_kernels.triton.common import launch, refuse_dtypes, round_even
from hexad_kernels.triton.linear import finish, finish_kernel, row_stride

SPLIT = 1024
MOST_ROWS = 8
LANES = tl.constexpr(16)


@triton.jit
def round_inputs_kernel(
    x_ptr, q_ptr, scale_ptr, inputs, x_row, groups, GROUP: tl.constexpr, AT_ONCE: tl.constexpr
):  # fmt: skip
    tiles = tl.cdiv(groups, AT_ONCE)
    row = (tl.program_id(0) // tiles).to(tl.int64)
    group = (tl.program_id(0) % tiles * AT_ONCE + tl.arange(0, AT_ONCE))[:, None]
    i = group * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(x_ptr + row * x_row + i, mask=i < inputs, other=0.0).to(tl.float32)
    finite = tl.min((tl.abs(x) < float("inf")).to(tl.int32), 1) > 0
    most = tl.max(tl.where(tl.abs(x) < float("inf"), tl.abs(x), 0.0), 1)
    inverse = tl.where(most > 1e-30, tl.div_rn(127.0, tl.where(most > 1e-30, most, 1.0)), 0.0)
    q = round_even(tl.where(finite[:, None], x * inverse[:, None], 0.0))
    scale = tl.where(finite, most * (1.0 / 127), float("nan"))
    there = group < groups
    tl.store(q_ptr + row * groups * GROUP + i, q.to(tl.int8), mask=there)
    tl.store(scale_ptr + row * groups + group, scale[:, None], mask=there)


@triton.jit
def place_of(rows, splits, SPLIT: tl.constexpr):
    """This program's panel, row of inputs, split and where that begins."""
    split = tl.program_id(0) % splits
    row = (tl.program_id(0) // splits % rows).to(tl.int64)
    panel = (tl.program_id(0) // splits // rows).to(tl.int64)
    return panel, row, split, split * SPLIT


@triton.jit
def store_sums(sums_ptr, total, panel, row, split, rows, outputs):
    n = panel * LANES + tl.arange(0, LANES)
    tl.store(sums_ptr + (split * rows + row) * outputs + n, total, mask=n < outputs)


@triton.jit
def dense_kernel(
    x_ptr, words_ptr, sums_ptr, rows, inputs, outputs, x_row, panel_words, splits,
    BFLOAT: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    panel, row, split, first = place_of(rows, splits, SPLIT)
    each = 2 if BFLOAT else 1  # inputs of a word
    k = tl.arange(0, BK)
    at = words_ptr + panel * panel_words + k[:, None] * LANES + tl.arange(0, LANES)[None, :]
    total = tl.zeros((BK, LANES), tl.float32)
    for begin in range(first, tl.minimum(first + SPLIT, inputs), BK * each):
        word = begin // each + k
        words = tl.load(at + begin // each * LANES, mask=(word * each < inputs)[:, None], other=0)
        x = tl.load(x_ptr + row * x_row + word * each, mask=word * each < inputs, other=0.0).to(tl.float32)
        if BFLOAT:
            total += x[:, None] * (words << 16).to(tl.float32, bitcast=True)
            x = tl.load(x_ptr + row * x_row + word * 2 + 1, mask=word * 2 + 1 < inputs, other=0.0).to(tl.float32)
            words = words & -65536
        total += x[:, None] * words.to(tl.float32, bitcast=True)
    store_sums(sums_ptr, tl.sum(total, 0), panel, row, split, rows, outputs)


@triton.jit
def int8_kernel(
    q_ptr, scale_ptr, words_ptr, sums_ptr, rows, inputs, outputs, panel_words, groups, splits,
    AT_ONCE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A group of 64 inputs is 16 words of 4; AT_ONCE of them a step."""
    panel, row, split, first = place_of(rows, splits, SPLIT)
    lane = tl.arange(0, LANES)
    words_ptr += panel * panel_words
    w_scale = tl.load(words_ptr + lane).to(tl.float32, bitcast=True)
    group = tl.arange(0, AT_ONCE)[:, None]
    k = tl.arange(0, 16)[None, :]
    byte = tl.arange(0, 4)[None, None, :]
    total = tl.zeros((AT_ONCE, LANES), tl.float32)
    last = tl.minimum((first + SPLIT) // 64, groups)
    for begin in range(first // 64, last, AT_ONCE):
        here = begin + group < last
        word = (begin + group) * 16 + k
        there = (here & (word * 4 < inputs))[:, :, None]
        words = tl.load(words_ptr + LANES + word[:, :, None] * LANES + lane[None, None, :], mask=there, other=0)
        x = tl.load(q_ptr + row * groups * 64 + word[:, :, None] * 4 + byte, mask=there & (byte >= 0), other=0)
        w = ((words[:, :, None, :] >> (8 * byte)[:, :, :, None]) & 255) - 128
        sums = tl.sum(tl.sum(x.to(tl.int32)[:, :, :, None] * w, 2), 1)
        scale = tl.load(scale_ptr + row * groups + begin + group, mask=here, other=0.0)
        total += sums.to(tl.float32) * scale
    store_sums(sums_ptr, tl.sum(total, 0) * w_scale, panel, row, split, rows, outputs)


@triton.jit
def int4_kernel(
    q_ptr, scale_ptr, words_ptr, sums_ptr, rows, inputs, outputs, panel_words, groups, splits,
    AT_ONCE: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """A group of 32 inputs is a word of scale and minimum and 4 words of 8; AT_ONCE of them a step."""
    panel, row, split, first = place_of(rows, splits, SPLIT)
    lane = tl.arange(0, LANES)
    words_ptr += panel * panel_words
    group = tl.arange(0, AT_ONCE)[:, None]
    k = tl.arange(0, 4)[None, :, None]
    # Input j of a word's 8: the low halves of its bytes, then the high ones.
    j = tl.arange(0, 8)[None, None, :]
    shift = (8 * (j % 4) + 4 * (j // 4))[:, :, :, None]
    total = tl.zeros((AT_ONCE, LANES), tl.float32)
    last = tl.minimum((first + SPLIT) // 32, groups)
    for begin in range(first // 32, last, AT_ONCE):
        here = begin + group < last
        at = (begin + group) * (5 * LANES)
        head = tl.load(words_ptr + at + lane[None, :], mask=here, other=0)
        words = tl.load(
            words_ptr + at[:, :, None] + (1 + k) * LANES + lane[None, None, :], mask=here[:, :, None], other=0
        )
        x_at = q_ptr + (row * groups + begin + group)[:, :, None] * 32 + k * 8 + j
        x = tl.load(x_at, mask=here[:, :, None] & (k + j >= 0), other=0).to(tl.int32)
        sums = tl.sum(tl.sum(x[:, :, :, None] * ((words[:, :, None, :] >> shift) & 15), 2), 1)
        whole = tl.sum(tl.sum(x, 2), 1)
        step = (head << 16).to(tl.float32, bitcast=True)
        least = (head & -65536).to(tl.float32, bitcast=True)
        scale = tl.load(scale_ptr + row * groups + begin + group, mask=here, other=0.0)
        total += (step * sums.to(tl.float32) + least * whole.to(tl.float32)[:, None]) * scale
    store_sums(sums_ptr, tl.sum(total, 0), panel, row, split, rows, outputs)


def refuses(
    x: Tensor, panels: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None, form: int, rows: int
) -> str | None:
    if x.shape[:-1].numel() > MOST_ROWS:
        return f"{x.shape[:-1].numel()} rows (its kernels take up to {MOST_ROWS}; unpack() gives the dense weight)"
    return refuse_dtypes(x)


def run(
    outputs: tuple[Tensor],
    x: Tensor, panels: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None, form: int, width: int,
) -> None:  # fmt: skip
    rows, inputs = x.shape[:-1].numel(), x.shape[-1]
    if not rows:
        return
    x, panels = check.matrix(x), panels.contiguous()
    splits = max(1, triton.cdiv(inputs, SPLIT))
    sums = torch.empty((splits, rows, width), dtype=torch.float32, device=x.device)
    programs = panels.shape[0] * rows * splits
    sizes = (rows, inputs, width)
    if form in (INT8, INT4):
        size = INPUT_GROUPS[form]
        groups = triton.cdiv(inputs, size)
        q = torch.empty((rows, groups * size), dtype=torch.int8, device=x.device)
        scales = torch.empty((rows, groups), dtype=torch.float32, device=x.device)
        launch(
            round_inputs_kernel, (rows * triton.cdiv(groups, 16),), x.device,
            x, q, scales, inputs, row_stride(x), groups, size, 16,
        )  # fmt: skip
        kernel = int8_kernel if form == INT8 else int4_kernel
        launch(
            kernel, (programs,), x.device, q, scales, panels, sums, *sizes, panels.shape[1], groups, splits,
            4 if form == INT8 else 8, SPLIT, num_warps=2,
        )  # fmt: skip
    else:
        launch(
            dense_kernel, (programs,), x.device, x, panels, sums, *sizes, row_stride(x), panels.shape[1], splits,
            form == BFLOAT, 128, SPLIT, num_warps=4,
        )  # fmt: skip
    programs, arguments = finish(sums, bias, activation, residual, outputs[0], rows, width)
    launch(finish_kernel, (programs,), x.device, *arguments)


BUDGET = {
    "bfloat16_long_rows bfloat16": {"sm_80": (64, 256), "sm_90": (56, 256), "sm_100": (56, 256), "gfx942": (48, 256)},
    "int8_eight_rows bfloat16": {
        "sm_80": (144, 9216),
        "sm_90": (112, 9216),
        "sm_100": (112, 9216),
        "gfx942": (104, 5120),
    },
    "int4_eight_rows bfloat16": {
        "sm_80": (144, 5120),
        "sm_90": (144, 5120),
        "sm_100": (144, 5120),
        "gfx942": (120, 5120),
    },
}

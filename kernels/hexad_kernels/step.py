"""step: one update of any diffusion or flow-matching sampler, as a row of a table of coefficients.

    m     = uncond + g (model_output - uncond)          guidance; without uncond, m = model_output
    p     = clip(A x + B m, -c, c)                      the clean image (or noise) that m implies
    out_k = C[k] . (x, m, p, h1, h2, h3, last, z)       k = 0 .. outputs - 1

    table[index] = [[A, B, c, g, 0, 0, 0, 0], C[0], C[1], C[2]]

DDPM, DDIM, Euler, Heun, DPM-Solver++, UniPC, LCM and their like are linear in these eight inputs, so each
is its own numbers. x is the state, h1..h3 earlier values of p (or what a sampler keeps), `last` a saved
state, z standard normal noise. c = inf turns the clipping off. A term whose coefficient is 0 is left out:
what its input holds, NaN and inf too, does not matter. The sum runs in the order above, in float32.

z is given, or made from seeds: row b of it is randn(seeds[b], its shape, offset=index + 1), so that offset 0 is left
to the state that a sampler begins with.

Papers: Ho & Salimans 2022 (guidance, arXiv 2207.12598), Song et al. 2020 (DDIM, 2010.02502), Lu et al. 2022
(DPM-Solver++, 2211.01095).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hexad_kernels import check, memory, native
from hexad_kernels.op import NATIVE_DTYPES, Op
from hexad_kernels.randn import reference as normals

STATE = (torch.float32, torch.float64)
STATES = ("x", "history[0]", "history[1]", "history[2]", "last", "noise")
COLUMNS = (0, 3, 4, 5, 6, 7)  # where STATES stand in a row of C


def contract(
    table: Tensor,
    index: int,
    x: Tensor,
    model_output: Tensor,
    uncond: Tensor | None,
    h1: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    last: Tensor | None,
    noise: Tensor | None,
    outputs: int,
    place: Tensor | None,
    seeds: Tensor | None,
) -> tuple[Tensor, ...]:
    check.tensor(x, "x", dtypes=STATE)
    shape = x.shape
    check.tensor(table, "table", rank=3, dtypes=STATE)
    steps = table.shape[0]
    check.shape(table, "table", (None, 4, 8), "(steps, [A B c g], C)")
    check.like(table, "table", x, "x")
    if not 0 <= index < steps:
        raise ValueError(f"index: got {index}, wants 0 to {steps - 1}, a row of the table")
    if not 1 <= outputs <= 3:
        raise ValueError(f"outputs: got {outputs}, wants 1, 2 or 3")
    check.tensor(model_output, "model_output")
    check.like(model_output, "model_output", x, "x", dtype=False)
    if model_output.shape != shape:
        check.shape(model_output, "model_output", tuple(shape), "x's shape")
    if uncond is not None:
        check.operand(uncond, "uncond", shape, model_output, "model_output", "x's shape")
    if h1 is not None:
        check.operand(h1, "history[0]", shape, x, "x", "x's shape")
    if h2 is not None:
        check.operand(h2, "history[1]", shape, x, "x", "x's shape")
    if h3 is not None:
        check.operand(h3, "history[2]", shape, x, "x", "x's shape")
    if last is not None:
        check.operand(last, "last", shape, x, "x", "x's shape")
    if noise is not None:
        check.operand(noise, "noise", shape, x, "x", "x's shape")
    if place is not None:
        check.tensor(place, "index", dtypes=(torch.int32, torch.int64))
        check.like(place, "index", x, "x", dtype=False)
        if place.numel() != 1:
            raise ValueError(f"index: got shape {tuple(place.shape)}, wants one number")
    if seeds is not None:
        check.tensor(seeds, "seeds", rank=1, dtypes=(torch.int64,))
        check.like(seeds, "seeds", x, "x", dtype=False)
        check.shape(seeds, "seeds", tuple(shape[:1]), "a seed for each row of x")
        if noise is not None:
            raise ValueError("seeds: got both seeds and noise, wants one of them")
    return tuple([memory.empty_like(x) for _ in range(outputs)])


def _index(table: Tensor, index: int, place: Tensor | None) -> int:
    """The number that an index holds; on a GPU, where no error can be raised, the nearest that there is."""
    if place is None:
        return index
    found = int(place)
    if place.is_cuda:
        return min(max(found, 0), len(table) - 1)
    if not 0 <= found < len(table):
        raise ValueError(f"index: got {found}, wants 0 to {len(table) - 1}, a row of the table")
    return found


def _noise(seeds: Tensor, x: Tensor, index: int) -> Tensor:
    return normals(seeds, x.shape[1:], index + 1).to(x.dtype)


def _require_present(row: Tensor, states: Sequence[Tensor | None], outputs: int) -> None:
    """An absent input has coefficient 0 in every output that is asked for."""
    for k, coefficients in enumerate(row[1 : 1 + outputs].tolist()):
        for value, name, column in zip(states, STATES, COLUMNS):
            if value is None and coefficients[column] != 0:
                raise ValueError(
                    f"{name}: missing, but output {k} of this step takes it times {coefficients[column]:g}"
                )


def _sum(coefficients: Tensor, values: Sequence[Tensor | None], like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for c, v in zip(coefficients, values):
        if v is not None:
            total = total + torch.where(c == 0, 0.0, c * v)
    return total


def reference(
    table: Tensor,
    index: int,
    x: Tensor,
    model_output: Tensor,
    uncond: Tensor | None,
    h1: Tensor | None,
    h2: Tensor | None,
    h3: Tensor | None,
    last: Tensor | None,
    noise: Tensor | None,
    outputs: int,
    place: Tensor | None,
    seeds: Tensor | None,
) -> list[Tensor]:
    index = _index(table, index, place)
    if seeds is not None:
        noise = _noise(seeds, x, index)
    row = table[index]
    if table.device.type == "cpu":
        _require_present(row, (x, h1, h2, h3, last, noise), outputs)
    a, b, clip, g = row[0, :4]
    m = model_output.to(x.dtype)
    if uncond is not None:
        u = uncond.to(x.dtype)
        m = u + g * (m - u)
    p = torch.clamp(_sum(torch.stack((a, b)), (x, m), x), -clip, clip)
    return [_sum(row[1 + k], (x, m, p, h1, h2, h3, last, noise), x) for k in range(outputs)]


def dense(*inputs: Tensor | None) -> list[Tensor | None]:
    """The inputs as kernels take them."""
    return [t if t is None or t.is_contiguous() else t.contiguous() for t in inputs]


def _native(
    outputs: tuple[Tensor, ...],
    table: Tensor, index: int, x: Tensor, model_output: Tensor, uncond: Tensor | None, h1: Tensor | None,
    h2: Tensor | None, h3: Tensor | None, last: Tensor | None, noise: Tensor | None, count: int,
    place: Tensor | None, seeds: Tensor | None,
) -> None:  # fmt: skip
    if native.on_cpu(x):
        index, place = _index(table, index, place), None
        if seeds is not None:
            noise = x.new_empty(x.shape)
            native.C.randn(seeds.contiguous(), noise, index + 1)
            seeds = None
    inputs = dense(table, x, model_output, uncond, h1, h2, h3, last, noise)
    out = (*outputs, None, None)
    native.C.step(*inputs, out[0], out[1], out[2], dense(seeds)[0], place, index)


_op = Op(
    "step",
    "(Tensor table, SymInt index, Tensor x, Tensor model_output, Tensor? uncond, Tensor? h1, Tensor? h2, Tensor? h3,"
    " Tensor? last, Tensor? noise, int outputs, Tensor? place, Tensor? seeds) -> Tensor[]",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=NATIVE_DTYPES,
    renamed={"h1": "history[0]", "h2": "history[1]", "h3": "history[2]", "place": "index"},
    batch=lambda *_: dict.fromkeys((*range(2, 10), 12), 1),
)


def step(
    table: Tensor,
    index: int | Tensor,
    x: Tensor,
    model_output: Tensor,
    uncond: Tensor | None = None,
    *,
    history: Sequence[Tensor | None] = (),
    last: Tensor | None = None,
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    outputs: int = 1,
) -> tuple[Tensor, ...]:
    """One step of a sampler: row `index` of its coefficient table applied to the state.

    table         (T, 4, 8) float32, on x's device
    index         0 to T - 1, or one int32 or int64 on x's device: a graph captured on a GPU then goes on to the next
                  step by index.add_(1), which it may hold too
    x             the state, any shape, float32 (float64, with a float64 table, through the reference)
    model_output  x's shape, float32 or bfloat16; uncond like it: the unconditional output of guidance
    history       up to three tensors like x: h1, h2, h3; last, noise: like x
    seeds         (B,) int64 in place of noise: row b of it is randn(seeds[b], its shape, offset=index + 1)
    outputs       how many of C's rows to compute, 1 to 3
    Returns a tuple of `outputs` tensors like x.

    Raises ValueError for an index outside the table, and for an absent input whose coefficient is not 0 in a
    row that is asked for. Neither is seen on a GPU, where reading it would stall the device: an index in its memory
    that is outside the table counts as the nearest row's. A sampler's step has no gradient here: its
    backward raises, unless backend("reference") is forced.
    """
    if type(history) is not tuple and (isinstance(history, str) or not isinstance(history, Sequence)):
        raise TypeError(f"history: got {check.described(history)}, wants a tuple of at most 3 tensors")
    h = tuple(history)
    if len(h) != 3:
        if len(h) > 3:
            raise ValueError(f"history: got {len(h)} tensors, wants a tuple of at most 3")
        h = (*h, None, None, None)[:3]
    place = None
    if isinstance(index, Tensor):
        index, place = 0, index
    return tuple(_op(table, index, x, model_output, uncond, *h, last, noise, outputs, place, seeds))

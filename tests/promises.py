"""The promises of every op as checks that raise AssertionError; tests/test_promises.py runs them on every case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import hexad_kernels
from hexad_kernels.op import OPS
from tests.cases import Call, Case

GUARD = 64
EPS = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float64: 2.0**-52}


def invoke(name: str, call: Call) -> tuple[Tensor, ...]:
    """The op's outputs, and for ops that work in place the tensors they changed."""
    out = getattr(hexad_kernels, name)(*call.args, **call.kwargs)
    if out is None:
        return tuple(a for a in call.args if isinstance(a, Tensor))
    return out if isinstance(out, tuple) else (out,)


def fresh(call: Call) -> Call:
    """A copy that in-place ops may write to."""
    return call.map(Tensor.clone)


def same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...], what: str) -> None:
    assert len(a) == len(b)
    for i, (x, y) in enumerate(zip(a, b)):
        assert x.shape == y.shape and x.dtype == y.dtype, (
            f"{what}: output {i}: {x.shape} {x.dtype}, {y.shape} {y.dtype}"
        )
        equal = (x == y) | ((x != x) & (y != y))
        if x.is_floating_point():
            equal &= torch.signbit(x) == torch.signbit(y)
        assert equal.all(), f"{what}: output {i}: {(~equal).sum()} of {equal.numel()} elements differ"


def accurate(name: str, call: Call, call64: Call) -> None:
    """|kernel - fp64| <= 2 max |torch, same dtype - fp64| + one ulp, and NaN and inf in the same places."""
    got = invoke(name, fresh(call))
    with hexad_kernels.backend("reference"):
        base, exact = invoke(name, fresh(call)), invoke(name, fresh(call64))
    for i, (g, b, e) in enumerate(zip(got, base, exact)):
        if not g.is_floating_point():
            assert torch.equal(g, e), f"output {i}: {(g != e).sum()} of {g.numel()} differ"
            continue
        eps = EPS[g.dtype]
        g, b, e = g.double(), b.double(), e.double()
        assert torch.equal(g.isnan(), e.isnan()), f"output {i}: NaN in other places"
        special = ~e.isfinite()
        assert torch.equal(torch.nan_to_num(g)[special], torch.nan_to_num(e)[special]), f"output {i}: inf differs"
        g, b, e = (torch.where(special, 0.0, t) for t in (g, b, e))
        if e.numel() == 0:
            continue
        bound = 2 * (b - e).abs().max() + eps * e.abs() + 1e-38
        excess = ((g - e).abs() / bound).max().item()
        assert excess <= 1, f"output {i}: error is {excess:.2f} of what is allowed ({(g - e).abs().max():.2e})"


def deterministic(name: str, call: Call, counts: tuple[int, ...] = (1, 2, 3)) -> None:
    """The same bits from run to run and for any of these numbers of threads."""
    first = invoke(name, fresh(call))
    same_bits(first, invoke(name, fresh(call)), "second run")
    threads = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            same_bits(first, invoke(name, fresh(call)), f"{count} threads")
    finally:
        torch.set_num_threads(threads)


def same_on_every_isa(name: str, call: Call) -> None:
    """float32 results are the same bits on each instruction set that the machine has."""
    native = hexad_kernels.native.C
    before = native.isa()
    first = invoke(name, fresh(call))
    try:
        for isa in native.isa_available().split(","):
            native.set_isa(isa)
            same_bits(first, invoke(name, fresh(call)), isa)
    finally:
        native.set_isa(before)


def batch_invariant(case: Case, call: Call, run: Callable[[Call], tuple[Tensor, ...]]) -> None:
    """A row alone gives the bits that it gives in the batch."""
    assert case.row is not None
    whole = run(fresh(call))
    for i in range(case.batch):
        alone = run(fresh(case.row(call, i)))
        same_bits(tuple(case.take(o, i) for o in whole), alone, f"row {i}")


@contextmanager
def poisoned_outputs(name: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Outputs lie between guards in memory filled with a pattern; yields (buffer, output) of each."""
    op = OPS[name]
    contract = op.contract
    made: list[tuple[Tensor, Tensor]] = []

    def place(out: Tensor) -> Tensor:
        size = out.element_size()
        buffer = torch.full(((out.numel() + 2 * GUARD) * size,), 0xFB, dtype=torch.uint8, device=out.device)
        inner = buffer[GUARD * size : buffer.numel() - GUARD * size].view(out.dtype).view(out.shape)
        made.append((buffer, inner))
        return inner

    op.contract = lambda *args: tuple(map(place, contract(*args)))
    try:
        yield made
    finally:
        op.contract = contract


def writes_exactly_its_output(name: str, call: Call) -> None:
    """All of the output is written, and nothing around it. The pattern 0xFB.. is NaN-free but never a result."""
    with poisoned_outputs(name) as made:
        invoke(name, fresh(call))
    for i, (buffer, out) in enumerate(made):
        edge = GUARD * out.element_size()
        assert (buffer[:edge] == 0xFB).all(), f"output {i}: wrote before its first element"
        assert (buffer[buffer.numel() - edge :] == 0xFB).all(), f"output {i}: wrote past its last element"
        if out.numel():
            inner = buffer[edge : buffer.numel() - edge].view(out.numel(), -1)
            left = (inner == 0xFB).all(1).sum().item()
            assert left == 0 or out.dtype == torch.bool, f"output {i}: {left} elements were not written"


def spread(t: Tensor) -> Tensor:
    """The same values with gaps between them: no dimension is contiguous."""
    if t.ndim == 0:
        return t
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), 7, dtype=t.dtype, device=t.device)
    view = wide[..., 1::2]
    return view.copy_(t)


def strides_do_not_matter(name: str, call: Call) -> None:
    plain, gapped = invoke(name, fresh(call)), invoke(name, fresh(call).map(spread))
    same_bits(plain, gapped, "strided inputs")


def flat_arguments(name: str, call: Call) -> tuple[Any, ...]:
    return hexad_kernels.explain(name, *call.args, **call.kwargs).arguments

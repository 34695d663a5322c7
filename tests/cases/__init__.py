"""Shapes worth testing, one file per op, read by the tests and by the benchmarks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Where the tests' tensors live: the device of the backend under test (tests/conftest.py).
DEVICE = os.environ.get("HEXAD_TEST_DEVICE", "cpu")


@dataclass(frozen=True)
class Call:
    """The arguments of one call of an op's public function."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def map(self, f: Callable[[Tensor], Tensor]) -> Call:
        """The same call with f applied to each tensor, also inside tuples and lists."""

        def apply(a: Any) -> Any:
            if isinstance(a, Tensor):
                return f(a)
            return type(a)(map(apply, a)) if isinstance(a, (tuple, list)) else a

        return Call(tuple(map(apply, self.args)), {k: apply(v) for k, v in self.kwargs.items()})


@dataclass(frozen=True)
class Work:
    """What a call must do at least: floating-point operations and bytes moved."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Case:
    """One shape. `make` draws inputs in float64 on the CPU; tests cast floating tensors to the dtype under test.

    row(call, i)  the call for row i alone (batch invariance); None: the op has no batch
    take(out, i)  row i of one output; default: out[i : i + 1]
    small         cheap enough for interpreted and emulated kernels
    bench         also measured by bench/
    bench_only    too large for the tests
    without       backends ("cpu", "cuda", "triton") whose kernel refuses the options or sizes
    only_longer   a shorter case goes the same way: what an emulated kernel shows in seconds here is its accuracy
    dtypes        dtypes to test
    statistics    arguments, by place or by name, that stay float32 in any narrower dtype
    """

    name: str
    make: Callable[[torch.Generator], Call]
    row: Callable[[Call, int], Call] | None = None
    take: Callable[[Tensor, int], Tensor] = lambda out, i: out[i : i + 1]
    batch: int = 1
    small: bool = False
    bench: bool = False
    bench_only: bool = False
    without: tuple[str, ...] = ()
    only_longer: bool = False
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    statistics: tuple[int | str, ...] = ()
    work: Work | None = None


def rand(g: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64) * scale


def first_rows(call: Call, i: int) -> Call:
    """Row i of every tensor of the call, for ops whose tensors all start with the batch."""
    return call.map(lambda t: t[i : i + 1])


def castable(t: Tensor) -> bool:
    """Whether a tensor takes the dtype under test. A float8 one is a cache, whose dtype is its own."""
    return t.is_floating_point() and t.itemsize > 1


def build(case: Case, dtype: torch.dtype, seed: int = 0) -> Call:
    call = case.make(torch.Generator().manual_seed(seed)).map(lambda t: t.to(DEVICE))
    cast = call.map(lambda t: t.to(dtype) if castable(t) else t)
    wide = torch.promote_types(dtype, torch.float32)
    args = tuple(call.args[i].to(wide) if i in case.statistics else a for i, a in enumerate(cast.args))
    kwargs = {k: call.kwargs[k].to(wide) if k in case.statistics else v for k, v in cast.kwargs.items()}
    return Call(args, kwargs)


def all_cases() -> dict[str, list[Case]]:
    """Op name -> its cases, from the files beside this one."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    return {name: import_module(f"tests.cases.{name}").CASES for name in found}


def cases() -> dict[str, list[Case]]:
    """Those that the CPU's kernels serve."""
    return {name: [case for case in found if "cpu" not in case.without] for name, found in all_cases().items()}

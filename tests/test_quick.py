"""The quick lane (bindings/quick.h) and the Python lane agree: the same bits, and never an answer to a wrong call."""

import os
import random

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hexad_kernels
from hexad_kernels.op import OPS
from tests import promises
from tests.bent import bend
from tests.cases import build, cases

ROUNDS = int(os.environ.get("HEXAD_FUZZ_ROUNDS", "60"))  # of each case
QUICK = [name for name, op in OPS.items() if op._quick]
REFUSALS = (ValueError, TypeError, RuntimeError, OverflowError, NotImplementedError, AttributeError)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def copied(args):
    """The same views of memory of their own."""
    return [
        torch.empty(0, dtype=a.dtype).set_(a.untyped_storage().clone(), a.storage_offset(), a.shape, a.stride())
        if isinstance(a, Tensor)
        else a
        for a in args
    ]


def outcome(call, args):
    """Its outputs, and what it changed; None if it answered nothing; or the error."""
    try:
        result = call(*args)
    except REFUSALS as error:
        return error
    if result is None:
        return None
    outputs = (result,) if isinstance(result, Tensor) else tuple(result)
    return outputs + tuple(a for a in args if isinstance(a, Tensor))


def slowly(op):
    def call(*args):
        with hexad_kernels.backend("cpu"):
            return op(*args)

    return call


def calls(name):
    for case in cases()[name]:
        if not case.bench_only:
            for dtype in case.dtypes:
                yield case, promises.flat_arguments(name, build(case, dtype))


@pytest.mark.skipif(not QUICK, reason="no compiled module")
def test_the_ops_of_small_models_have_it():
    expected = {"attention", "append_kv", "coupling", "decode", "invconv", "linear", "linear_packed", "norm"}
    expected |= {"randn", "rope", "sample", "step"}
    assert set(QUICK) == expected


@torch.no_grad()
@pytest.mark.parametrize("name", QUICK)
def test_the_same_bits(name):
    op, answered = OPS[name], 0
    for case, args in calls(name):
        quick = outcome(op._quick, copied(args))
        if quick is not None:
            answered += 1
            promises.same_bits(quick, outcome(slowly(op), copied(args)), case.name)
    assert answered >= 2


@torch.no_grad()
@pytest.mark.parametrize("name", QUICK)
def test_a_wrong_call_is_left_alone(name):
    op, pick = OPS[name], random.Random(name)
    answered, refused = 0, 0
    for case, args in calls(name):
        for _ in range(ROUNDS if case.small else ROUNDS // 6):
            given = bend(args, pick)
            quick, slow = outcome(op._quick, copied(given)), outcome(slowly(op), copied(given))
            if isinstance(slow, Exception):
                refused += 1
                assert quick is None, f"{case.name}: answered what the contract refuses: {slow}"
            elif quick is not None:
                answered += 1
                promises.same_bits(quick, slow, case.name)
    assert answered and refused


def test_gradients_modes_and_forced_backends_go_the_other_way():
    x, weight = torch.randn(2, 8), torch.randn(8)
    quick = OPS["norm"]._quick
    args = (weight, None, 0, 1e-5, 0, None, None, 0)
    assert quick(x, *args) is not None
    with hexad_kernels.backend("reference"):
        assert quick(x, *args) is None
    with Mode():
        assert quick(x, *args) is None
    with torch.autocast("cpu"):
        assert quick(x, *args) is None
    with torch.autograd.forward_ad.dual_level():
        assert quick(x, *args) is None
    assert quick(x.requires_grad_(), *args) is None
    with torch.no_grad():
        y = quick(x, *args)
    assert type(y) is Tensor and not y.requires_grad and y.is_contiguous() and y._version == 0
    assert hexad_kernels.norm(x, weight).requires_grad
    x = x.detach()
    negated = torch.complex(x, x).conj().imag
    assert negated.is_neg() and quick(negated, *args) is None
    assert quick(torch.complex(x, x)[:1, :1].conj().imag, *args) is None


def test_an_output_is_memory_of_its_own():
    made = [hexad_kernels.norm(torch.full((1, 4), float(i)), None, torch.full((4,), float(i))) for i in range(100)]
    assert all((y == i).all() for i, y in enumerate(made))
    made[3].add_(1).requires_grad_()
    assert (made[3] == 4).all() and (made[2] == 2).all()


@pytest.mark.parametrize("count", [7_000_000, 9_000_000], ids=["28MB", "36MB"])
def test_large_outputs_stay_with_memory(count):
    x = torch.zeros(count // 1000, 1000)
    quick = OPS["norm"]._quick(x, None, None, 0, 1e-5, 0, None, None, 0)
    assert (quick is None) == (x.nbytes >= 32 << 20)

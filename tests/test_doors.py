"""The C doors under wrong arguments: whatever comes, a door computes or says what is wrong; it never crashes.

Valid calls are recorded from the ops' cases; then one or two of their arguments are bent.
"""

import os
import random

import numpy as np
import pytest
import torch
from torch import Tensor

import hexad_kernels
from hexad_kernels import native
from tests import promises
from tests.cases import build, cases

ROUNDS = int(os.environ.get("HEXAD_FUZZ_ROUNDS", "40"))  # of each case; some thousands under a sanitizer
INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 2**31 - 1, 2**40, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-45, 0.5, 1e38)


class Recorder:
    """Stands in for the compiled module and keeps a copy of each call's arguments."""

    def __init__(self, module):
        self.module = module
        self.calls = []

    def __getattr__(self, name):
        def call(*args):
            self.calls.append((name, [a.clone() if isinstance(a, Tensor) else a for a in args]))
            return getattr(self.module, name)(*args)

        return call


def recorded(name):
    """A few valid calls of the door `name`, small ones."""
    recorder = Recorder(native.C)
    try:
        native.C = recorder
        for case in cases()[name]:
            if case.small and not case.bench_only:
                for dtype in case.dtypes:
                    if dtype in (torch.float32, torch.bfloat16):
                        promises.invoke(name, promises.fresh(build(case, dtype)))
    finally:
        native.C = recorder.module
    return [args for door, args in recorder.calls if door == name]


def bent(t, pick):
    """A tensor like `t`, but not quite."""
    d = pick.randrange(t.ndim) if t.ndim else 0
    choice = pick.randrange(12)
    if choice == 0 or t.ndim == 0:
        return None
    if choice == 1:
        return t.to(pick.choice((torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.bool)))
    if choice == 2:
        return pick.choice((t.unsqueeze(d), t.flatten(), t.select(d, 0) if t.shape[d] else t))
    if choice == 3:
        return t.narrow(d, 0, pick.randrange(t.shape[d] + 1))
    if choice == 4:
        return torch.cat([t, t], d)
    if choice == 5 and t.shape[d]:
        return t.narrow(d, 0, 1).expand(t.shape)
    if choice == 6 and t.numel():
        alone = t.narrow(d, 0, 1)
        return alone.expand(*t.shape[:d], 2**62 // alone.numel(), *t.shape[d + 1 :])
    if choice == 7 and t.shape[d]:
        alone = t.narrow(d, 0, 1)
        return alone.as_strided(alone.shape, [2**60 if i == d else s for i, s in enumerate(alone.stride())])
    if choice == 8 and t.ndim > 1:
        return t.transpose(d, d - 1)
    if choice == 9 and t.dtype in (torch.float32, torch.int32, torch.int64):
        return np.flip(t.clone().numpy(), d)
    if choice == 10:
        return t.new_zeros([2 * n for n in t.shape])[tuple(slice(None, None, 2) for _ in t.shape)].copy_(t)
    if t.dtype in (torch.int32, torch.int64) and t.numel():
        info = torch.iinfo(t.dtype)
        changed = t.clone()
        changed.view(-1)[pick.randrange(t.numel())] = pick.choice((info.min, -1, 0, 1, 7, 2**30, info.max))
        return changed
    return t


def bend(args, pick):
    args = [a.clone() if isinstance(a, Tensor) else a for a in args]
    for i in pick.sample(range(len(args)), pick.choice((1, 1, 2))):
        a = args[i]
        if isinstance(a, Tensor):
            args[i] = bent(a, pick)
        elif isinstance(a, int):
            args[i] = pick.choice(INTEGERS)
        elif isinstance(a, float):
            args[i] = pick.choice(NUMBERS)
    return args


@pytest.mark.parametrize("name", sorted(hexad_kernels.OPS))
def test_bent_arguments_are_computed_or_refused(name):
    pick = random.Random(name)
    door = getattr(native.C, name)
    refused = []
    for args in recorded(name):
        for _ in range(ROUNDS):
            try:
                door(*bend(args, pick))
            except (ValueError, TypeError, NotImplementedError) as error:
                refused.append(str(error))
    assert refused, "no argument was ever wrong"
    assert all(refused), "an error without a text"


def test_sizes_whose_product_overflows():
    """Such an array is not the empty one that its wrapped product says."""
    x = torch.zeros(1).expand(2**31, 2**30)
    with pytest.raises(ValueError, match=r"x: has more than 2\^60 elements"):
        native.C.norm(x, None, None, None, None, torch.zeros(4, 4), 0, 1e-5, 0, 0)


def test_memory_that_is_missing_or_off_its_elements():
    y = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="x: has no memory"):
        native.C.linear(torch._efficientzerotensor((2, 4)), torch.zeros(2, 4), None, None, y, 0)
    odd = np.zeros(33, np.uint8)[1:].view(np.float32).reshape(2, 4)
    with pytest.raises(ValueError, match="x: starts off a multiple of its element's 4 bytes"):
        native.C.linear(odd, torch.zeros(2, 4), None, None, y, 0)


def test_an_output_has_memory_for_each_element():
    with pytest.raises(ValueError, match="y: dimension 0 has stride 0"):
        native.C.linear(torch.zeros(3, 4), torch.zeros(2, 4), None, None, torch.zeros(1, 2).expand(3, 2), 0)


def test_counts_without_elements_cost_nothing():
    """2^40 codebook entries of no features, 2^40 sequences of no rows."""
    _, index = hexad_kernels.vq(torch.zeros(3, 0), torch.zeros(2**40, 0))
    assert index.tolist() == [0, 0, 0]
    assert hexad_kernels.rope(torch.zeros(2**40, 1, 0, 2), torch.zeros(3, 1), torch.zeros(3, 1)).numel() == 0


def test_an_empty_coupling_writes_its_log_det():
    log_det = torch.full((2,), 7.0)
    native.C.coupling(
        torch.zeros(2, 4, 0), torch.zeros(2, 2, 0), None, torch.zeros(2, 4, 0), log_det, None, None, 0, 0, 0, 0, 1.0
    )
    assert log_det.tolist() == [0, 0]

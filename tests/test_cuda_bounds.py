"""Emulated kernels read and write nothing beyond their tensors, which lie on guard pages here."""

import ctypes

import pytest
import torch

import hexad_kernels
from hexad_kernels.op import OPS
from tests import promises
from tests.cases import all_cases, build
from tests.cuda_emulator.guarded import guarded

SMALL = [
    (name, case, dtype)
    for name, found in all_cases().items()
    for case in found
    if case.small and "cuda" not in case.without
    for dtype in case.dtypes[-2:]
]


@pytest.mark.parametrize("at_start", [False, True], ids=["end", "start"])
@pytest.mark.parametrize(("name", "case", "dtype"), SMALL, ids=lambda v: getattr(v, "name", None) or str(v)[-8:])
def test_stays_inside_its_tensors(name, case, dtype, at_start, backend_name, monkeypatch):
    op = OPS[name]
    if backend_name != "cuda-emulated" or not op.cuda:
        pytest.skip("for emulated CUDA kernels")
    call, contract = build(case, dtype), op.contract
    with hexad_kernels.backend(backend_name), guarded(at_start) as place:
        want = promises.invoke(name, promises.fresh(call))
        number = iter(range(100))
        inside = call.map(lambda t: place(t, f"input {next(number)}"))
        monkeypatch.setattr(
            op, "contract", lambda *args: tuple(place(t, f"output {i}") for i, t in enumerate(contract(*args)))
        )
        got = tuple(t.clone() for t in promises.invoke(name, inside))
    promises.same_bits(want, got, "on guard pages")


def test_an_access_beyond_a_tensor_is_found(backend_name):
    if backend_name != "cuda-emulated":
        pytest.skip("for emulated CUDA kernels")
    with hexad_kernels.backend(backend_name), guarded(False) as place:
        x = place(torch.ones(4, 8), "x")
        longer = torch.frombuffer((ctypes.c_float * 40).from_address(x.data_ptr()), dtype=torch.float32).view(5, 8)
        with pytest.raises(RuntimeError, match=r"coupling: block .* reads \d+ bytes past the end of x \(128 bytes\)"):
            hexad_kernels.coupling(longer, torch.zeros(5, 4))

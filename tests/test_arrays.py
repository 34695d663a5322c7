"""Arrays of numpy and jax in place of tensors, and of cupy by a stand-in: no copies, the caller's kind back."""

import sys
import types
import warnings

import numpy as np
import pytest
import torch

import hexad_kernels as hk
from hexad_kernels import OPS, arrays
from tests import promises
from tests.cases import build, cases


class StandIn:
    """What cupy's arrays are to hexad (DLPack, strides, a module with from_dlpack), on the CPU and without cupy."""

    def __init__(self, values, device=(1, 0), read_only=False):
        self.values, self.device, self.read_only = values, device, read_only
        self.dtype, self.shape, self.strides = values.dtype, values.shape, values.strides

    def copy(self):
        return StandIn(self.values.copy(), self.device)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        values = self.values
        if self.read_only:
            values = values.view()
            values.flags.writeable = False
        return values.__dlpack__(max_version=max_version)

    def __dlpack_device__(self):
        return self.device


@pytest.fixture
def standin(monkeypatch):
    """Its package, as cupy is one."""
    module = types.ModuleType("stand_in")
    module.from_dlpack = lambda t: StandIn(t.numpy())
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setattr(StandIn, "__module__", "stand_in.arrays")
    return lambda t: StandIn(t.numpy())


def jax_array(t):
    return pytest.importorskip("jax.numpy", reason="needs jax: pip install hexad[jax]").from_dlpack(t.contiguous())


KINDS = {"numpy": lambda t: t.numpy(), "jax": jax_array, "stand_in": None}


@pytest.fixture(params=KINDS)
def made(request):
    if request.param == "stand_in":
        return "stand_in", request.getfixturevalue("standin")
    if request.param == "jax":
        pytest.importorskip("jax", reason="needs jax: pip install hexad[jax]")
    return request.param, KINDS[request.param]


def back(a):
    return torch.from_dlpack(a)


def every_call():
    for name in sorted(OPS):
        found = [case for case in cases()[name] if case.small and torch.float32 in case.dtypes]
        yield from ((name, case) for case in found[:3])


@pytest.mark.parametrize(("name", "case"), list(every_call()), ids=lambda value: getattr(value, "name", str(value)))
def test_every_op_takes_arrays_and_gives_them_back(name, case, made):
    kind, make = made
    op = OPS[name]
    args = promises.flat_arguments(name, build(case, torch.float32))
    if kind == "jax" and op.mutates:
        pytest.skip("jax's arrays never change")
    copies = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    want = op(*copies)
    if kind == "jax" and any(isinstance(a, torch.Tensor) and a.dtype == torch.int64 for a in args):
        pytest.skip("jax has no int64 unless JAX_ENABLE_X64 is set")
    given = [make(a.clone()) if isinstance(a, torch.Tensor) else a for a in args]
    got = op(*given)
    for a, b in zip(given, copies):  # what was written, was written into the caller's memory
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(back(a), b, rtol=0, atol=0, equal_nan=True)
    if want is None or (isinstance(want, tuple) and not want):
        return
    pairs = [(got, want)] if isinstance(want, torch.Tensor) else list(zip(got, want))
    for g, w in pairs:
        assert arrays.kind(g) == kind
        if kind == "jax" and w.dtype == torch.int64:  # jax's own choice, unless JAX_ENABLE_X64 is set
            w = w.int()
        torch.testing.assert_close(back(g), w, rtol=0, atol=0, equal_nan=True)


def test_functions_with_options(made):
    kind, make = made
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    q = torch.randn(1, 2, 5, 8)
    calls = {
        "linear": lambda c: hk.linear(c(x), c(weight), activation="gelu"),
        "packed": lambda c: hk.linear(c(x), hk.pack(c(weight))),
        "attention": lambda c: hk.attention(c(q), c(q), c(q), causal=True, return_lse=True)[1],
        "norm": lambda c: hk.norm(c(x), kind="rms"),
        "step": lambda c: hk.step(c(torch.ones(1, 4, 8)), 0, c(x), c(x), history=[c(x)] * 3, last=c(x), noise=c(x))[0],
    }
    if kind != "jax":
        seeds = torch.tensor([1, 2, 3])
        calls["randn"] = lambda c: hk.randn(c(seeds), (4,))
        calls["sample"] = lambda c: hk.sample(c(x), c(seeds), temperature=c(torch.ones(3)))
        calls["merge"] = lambda c: hk.merge_attention(c(x), c(x[:, 0].clone()), c(x), c(x[:, 1].clone()))[0]
    for name, call in calls.items():
        got = call(make)
        assert arrays.kind(got) == kind, name
        assert torch.equal(back(got), call(lambda t: t)), name
    assert hk.sample(make(x), [1, 2, 3]).shape == (3,)


def test_nothing_is_copied_on_the_way_in(monkeypatch):
    x = np.random.rand(3, 8).astype(np.float32)
    seen = []
    monkeypatch.setattr(OPS["norm"], "_quick", None)
    monkeypatch.setattr(OPS["norm"], "native", lambda outputs, *args: seen.append(args[0].data_ptr()))
    got = hk.norm(x)
    assert seen == [x.ctypes.data] and isinstance(got, np.ndarray)
    strided = np.random.rand(8, 3).astype(np.float32).T
    hk.norm(strided)
    assert seen[1] == strided.ctypes.data


def test_results_are_the_kernels_own_memory(monkeypatch):
    made = []
    op = OPS["norm"]
    native = op.native
    monkeypatch.setattr(op, "_quick", None)
    monkeypatch.setattr(op, "native", lambda outputs, *a: (made.append(outputs[0].data_ptr()), native(outputs, *a)))
    got = hk.norm(np.ones((3, 8), np.float32))
    assert got.ctypes.data == made[0] and got.flags.writeable


def test_read_only_arrays_are_read_and_never_written(standin):
    x = np.random.rand(3, 8).astype(np.float32)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(hk.norm(x, kind="rms"), hk.norm(x.copy(), kind="rms"))
    k, lengths = np.ones((1, 2, 1, 4), np.float32), np.zeros(1, np.int32)
    cache, still = np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 2, 3, 4), np.float32)
    still.flags.writeable = False
    with pytest.raises(ValueError, match="v_cache: is read-only, and this function writes to it"):
        hk.append_kv(k, k, cache, still, lengths)
    assert not still.any() and not cache.any()
    hk.append_kv(k, k, cache, cache.copy(), lengths)
    assert cache[0, :, 0].all()
    ours = [StandIn(a) for a in (k, k, cache, cache.copy(), lengths)]
    ours[2].read_only = True
    with pytest.raises(ValueError, match="k_cache: is read-only"):
        hk.append_kv(*ours)


def test_jax_arrays_are_never_written():
    jnp = pytest.importorskip("jax.numpy", reason="needs jax: pip install hexad[jax]")
    k, cache, lengths = jnp.ones((1, 2, 1, 4)), jnp.zeros((1, 2, 3, 4)), jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="k_cache: is read-only"):
        hk.append_kv(k, k, cache, cache, lengths)
    assert not cache.any()


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="numpy's bfloat16 is ml_dtypes'")
    x = torch.randn(3, 8).bfloat16()
    want = hk.norm(x)
    got = hk.norm(x.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    assert got.dtype == ml_dtypes.bfloat16
    assert np.array_equal(got.astype(np.float32), want.float().numpy())


def test_negative_strides_and_scalars():
    x = np.random.rand(3, 8).astype(np.float32)
    assert np.array_equal(hk.norm(x[::-1, ::-1]), hk.norm(x[::-1, ::-1].copy()))
    x_, t = np.ones((2, 4), np.float32), np.ones((2, 2), np.float32)
    hk.coupling(x_, t, t, scale_map="tanh", clamp=np.float32(1.5))
    cache = np.zeros((1, 2, 3, 4), np.float32)
    with pytest.raises(ValueError, match="k_cache: has a negative stride"):
        hk.append_kv(cache[:, :, :1], cache[:, :, :1], cache[:, :, ::-1], cache, np.zeros(1, np.int32))


def test_wrong_arrays_are_named(standin):
    x = np.ones((3, 8), np.float32)
    wrong = [
        (lambda: hk.norm(x.astype(np.complex64)), TypeError, "x: got complex64"),
        (lambda: hk.norm(np.array([["a"]])), TypeError, "x: got an array of dtype <U1, which cannot be a tensor"),
        (lambda: hk.linear(x, np.ones((4, 7), np.float32)), ValueError, r"weight: got shape \(4, 7\)"),
        (lambda: hk.linear(x, torch.ones(4, 8)), TypeError, "x: got ndarray, wants a torch.Tensor"),
        (lambda: hk.sample(x, torch.zeros(3).long()), TypeError, "seeds: got a torch.Tensor among arrays of numpy"),
        (lambda: hk.linear(x, standin(torch.ones(4, 8))), TypeError, "weight: got an array of stand_in among arrays"),
        (lambda: hk.norm(StandIn(x, device=(8, 0))), ValueError, "x: is on a device of DLPack's type 8"),
        (lambda: hk.norm("x"), TypeError, "x: got str"),
    ]
    if not torch.cuda.is_available():
        wrong.append(
            (lambda: hk.norm(StandIn(x, device=(2, 0))), ValueError, "x: is on a GPU, and this torch has none")
        )
    for call, error, text in wrong:
        with pytest.raises(error, match=text):
            call()


def test_explain_and_backends_take_arrays_too():
    x = np.ones((3, 8), np.float32)
    assert hk.explain("norm", x).served_by == "cpu"
    with hk.backend("reference"):
        assert isinstance(hk.norm(x), np.ndarray)

"""The compiled library in the process: one OpenMP runtime, no leaking symbols, forced instruction sets, errors."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import hexad_kernels
from hexad_kernels import coupling, linear, maskedconv, native, sample

LIBRARY = Path(hexad_kernels.__file__).parent / "lib" / "libhexad.so"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_the_module_is_loaded():
    assert native.C is not None, native.missing
    assert native.C.abi_version() == 1


RUNTIMES = """
import torch, hexad_kernels, re
x = torch.randn(64, 64, 64); h = torch.randn(64, 32, 64)
torch.mm(torch.randn(512, 512), torch.randn(512, 512))
hexad_kernels.coupling(x, h, h)
maps = open('/proc/self/maps').read()
loaded = set(re.findall(r'/\\S*(?:libgomp|libomp|libiomp)\\S*', maps))
print(len(loaded), hexad_kernels.machine()['openmp'] in loaded, *loaded)
"""


def test_one_openmp_runtime_and_it_is_torchs():
    assert python(RUNTIMES).stdout.split()[:2] == ["1", "True"]


def test_one_openmp_runtime_under_a_name_of_its_own(tmp_path):
    """Some wheels of torch carry a renamed copy; torch takes this one for its own, as it has the same soname."""
    renamed = tmp_path / "libgomp-a34b3233.so.1.0.0"
    shutil.copy(native.C.openmp_path(), renamed)
    assert python(RUNTIMES, LD_PRELOAD=str(renamed)).stdout.split() == ["1", "True", str(renamed)]


def test_threads_follow_torch():
    """Two threads run a large call at once: its processor time exceeds what one thread has of wall time."""
    code = """
import torch, hexad_kernels, threading, os
torch.set_num_threads(2)
x = torch.randn(64, 1024, 64); h = torch.randn(64, 512, 64)
before = len(os.listdir('/proc/self/task'))
hexad_kernels.coupling(x, h, h)
print(len(os.listdir('/proc/self/task')) - before)
"""
    assert int(python(code).stdout) == 1
    assert int(python(code.replace("set_num_threads(2)", "set_num_threads(1)")).stdout) == 0


def test_a_new_thread_starts_with_torchs_count():
    """OpenMP's own default for a new thread is every core; torch sets its count there at first use, and so do we."""
    code = """
import torch, hexad_kernels, threading, os
torch.set_num_threads(1)
x = torch.randn(64, 1024, 64); h = torch.randn(64, 512, 64)
def call():
    before = len(os.listdir('/proc/self/task'))
    hexad_kernels.coupling(x, h, h)
    print(len(os.listdir('/proc/self/task')) - before)
thread = threading.Thread(target=call); thread.start(); thread.join()
"""
    assert python(code, OMP_NUM_THREADS="2").stdout.split() == ["0"]


def test_several_threads_at_once_with_counts_that_change():
    """Each Python thread has regions of its own, whatever its count, and always the same bits."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 6, 9, 9, generator=generator), torch.randn(40, 6, 3, 3, generator=generator)
    rows, square = torch.randn(300, 64, generator=generator), torch.randn(200, 64, generator=generator)
    logits, seeds = torch.randn(6, 5000, generator=generator), torch.arange(6)

    def results():
        return maskedconv(x, weight), linear(rows, square), sample(logits, seeds, top_p=0.9)

    want, before = results(), torch.get_num_threads()

    def work(turn):
        for i in range(12):
            torch.set_num_threads(1 + (turn + i) % 3)
            for got, expected in zip(results(), want):
                assert torch.equal(got, expected)

    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        torch.set_num_threads(before)


def test_a_forked_child_still_computes():
    """The runtime's threads do not survive a fork: torch's own regions hang there, ours run on the one that does."""
    code = """
import torch, hexad_kernels, os
torch.set_num_threads(2)
x = torch.zeros(64, 1024, 64); h = torch.zeros(64, 512, 64)
hexad_kernels.coupling(x, h, h)
child = os.fork()
if child == 0:
    hexad_kernels.coupling(x, h, h)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "7"


def test_exports_the_c_abi_and_nothing_else():
    names = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    exported = {line.split()[-1] for line in names.splitlines()}
    header = (LIBRARY.parent.parent / "include/hexad/hexad.h").read_text()
    documented = set(re.findall(r"\b(hexad_\w+)\(", header))
    assert {name for name in exported if name.startswith("hexad_")} == documented
    assert all(name.startswith("hexad_") for name in exported), exported - documented


def test_no_weak_symbols_in_per_instruction_set_objects():
    build = Path(__file__).parent.parent / "build" / "native" / "CMakeFiles"
    objects = list(build.glob("cpu_*.dir/**/*.o"))
    if not objects:
        pytest.skip("no build tree beside the tests")
    listing = subprocess.run(["nm", "-C", *objects], capture_output=True, text=True, check=True).stdout
    leaks = [line for line in listing.splitlines() if re.search(r"^[0-9a-f ]{17}[WV] ", line)]
    assert not leaks


@pytest.mark.parametrize("isa", native.C.isa_available().split(",") if native.C else [])
def test_environment_forces_an_instruction_set(isa):
    """The library reads it, whoever loads it: no need of torch here."""
    code = f"""
import ctypes
library = ctypes.CDLL({str(LIBRARY)!r})
library.hexad_isa.restype = ctypes.c_char_p
print(library.hexad_isa().decode())
"""
    assert python(code, HEXAD_ISA=isa).stdout.strip() == isa


def test_unknown_instruction_set_is_named():
    with pytest.raises(ValueError, match="sse9"):
        native.C.set_isa("sse9")
    code = "import hexad_kernels; print(hexad_kernels.machine()['native'], hexad_kernels.machine()['isa'])"
    assert "sse9" in python(code, HEXAD_ISA="sse9").stdout
    lowest = native.C.isa_available().split(",")[0]
    assert python(code, HEXAD_ISA=lowest).stdout.split() == ["loaded", lowest]


def test_numpy_arrays_cross_by_dlpack():
    x, t = np.ones((2, 4), np.float32), np.full((2, 2), 3, np.float32)
    y, log_det = np.empty_like(x), np.empty(2, np.float32)
    native.C.coupling(x, t, None, y, log_det, None, None, False, 0, False, 0, 1.0)
    assert (y == [1, 1, 4, 4]).all()


def test_the_door_checks_what_memory_safety_needs():
    x, y, log_det = torch.zeros(2, 4), torch.empty(2, 4), torch.empty(2)
    with pytest.raises(ValueError, match="shift: dimension 1 is 3, wants 2"):
        native.C.coupling(x, torch.zeros(2, 3), None, y, log_det, None, None, False, 0, False, 0, 1.0)
    with pytest.raises(ValueError, match="log_det: is float64"):
        native.C.coupling(x, torch.zeros(2, 2), None, y, log_det.double(), None, None, False, 0, False, 0, 1.0)
    with pytest.raises(ValueError, match="y: dimension 1 has stride 2, wants 1"):
        native.C.coupling(
            x, torch.zeros(2, 2), None, torch.empty(2, 8)[:, ::2], log_det, None, None, False, 0, False, 0, 1.0
        )


def test_forced_backend_names_its_reason():
    x, t = torch.zeros(2, 4), torch.zeros(2, 2)
    with hexad_kernels.backend("cuda"), pytest.raises(hexad_kernels.BackendError, match="the tensors are on cpu"):
        coupling(x, t)
    with (
        pytest.raises(ValueError, match="backend: got 'opencl', wants one of reference, cpu"),
        hexad_kernels.backend("opencl"),
    ):
        pass
    bad = python("import hexad_kernels", HEXAD_BACKEND="opencl")
    assert bad.returncode and "HEXAD_BACKEND: got 'opencl'" in bad.stderr


def test_explain():
    x, t = torch.zeros(2, 4), torch.zeros(2, 2)
    answer = hexad_kernels.explain("coupling", x, t)
    assert answer.served_by == "cpu" and "the tensors are on cpu" in answer.refusals["cuda"]
    answer = hexad_kernels.explain("coupling", x.double(), t.double())
    assert answer.served_by == "reference" and "float64" in answer.refusals["cpu"]
    with pytest.raises(ValueError, match="name: got 'convolve'"):
        hexad_kernels.explain("convolve", x)


def test_a_fallback_warns_once():
    code = """
import torch, warnings, hexad_kernels
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    for _ in range(3): hexad_kernels.coupling(torch.zeros(2, 4).double(), torch.zeros(2, 2).double())
print(len(seen), seen[0].message)
"""
    out = python(code).stdout
    assert out.startswith("1 ") and "float64" in out


def test_fake_tensors_and_functorch_take_the_library_lane():
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, t = torch.randn(3, 4), torch.randn(3, 2)
    with FakeTensorMode() as mode:
        y, log_det = coupling(mode.from_tensor(x), mode.from_tensor(t))
        assert type(y).__name__ == "FakeTensor" and log_det.shape == (3,)


@pytest.mark.skipif(native.C is None, reason=native.missing)
def test_the_fast_lane_takes_plain_cpu_tensors_only():
    from hexad_kernels.op import OPS

    def lane(args):
        return native.C.plain_on_cpu(args, OPS["linear"]._accepted, torch.is_grad_enabled())

    x = torch.randn(2, 4)
    negated = torch.randn(2, 4, dtype=torch.complex64).conj().imag
    assert lane((x, torch.nn.Parameter(x, requires_grad=False), None, 3, 0.5, [x, None]))
    assert not lane((x, x.half()))
    assert not lane((x, x.to("meta")))
    assert not lane((x, [x, x.clone().requires_grad_()]))
    assert not lane((x, type("Sub", (torch.Tensor,), {})()))
    assert not lane((x, negated)) and not lane((x, negated[:1, 0]))
    with torch.no_grad():
        assert lane((x, x.clone().requires_grad_()))


def test_a_lazily_negated_view_is_read_as_what_it_means():
    z = torch.randn(3, 1, dtype=torch.complex64).conj()
    weight = torch.randn(2, 1)
    assert z.imag.is_neg()
    torch.testing.assert_close(hexad_kernels.linear(z.imag, weight), z.imag.resolve_neg() @ weight.T)
    k = torch.randn(1, 1, 1, 1)
    cache = torch.zeros(1, 1, 4, 1, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match="negated"):
        hexad_kernels.append_kv(k, k, cache, cache.clone(), torch.zeros(1, dtype=torch.int32))


def test_a_lazily_negated_gradient_is_read_as_what_it_means():
    x, shift = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 2, 3)
    y, _ = hexad_kernels.coupling(x, shift, shift)
    grad = torch.randn_like(y)
    (negated,) = torch.autograd.grad(y, x, torch._neg_view(grad), retain_graph=True)
    (plain,) = torch.autograd.grad(y, x, -grad)
    assert torch.equal(negated, plain)


# An op whose reference differentiates it, one with a backward kernel, one that recovers its input.
TWICE = {
    "linear": lambda x: hexad_kernels.linear(x, x.flatten(1)[:4, :3].contiguous(), activation="silu"),
    "attention": lambda x: hexad_kernels.attention(x, 2 * x, x.sin(), causal=True),
    "coupling": lambda x: hexad_kernels.coupling(x, x[:, :1], x[:, 1:].sin())[0],
}


@pytest.mark.parametrize("name", sorted(TWICE))
def test_gradients_can_be_differentiated_again(name):
    x = torch.randn(3, 2, 5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def twice():
        (first,) = torch.autograd.grad(TWICE[name](x).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    got = twice()
    with hexad_kernels.backend("reference"):
        torch.testing.assert_close(got, twice(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(TWICE))
def test_a_checkpoint_recomputes_what_backward_needs(name):
    x = torch.randn(3, 2, 5, 3, requires_grad=True)
    (plain,) = torch.autograd.grad(TWICE[name](x).sum(), x)
    (again,) = torch.autograd.grad(checkpoint(TWICE[name], x, use_reentrant=False).sum(), x)
    assert torch.equal(plain, again)


@pytest.mark.skipif(native.C is None, reason=native.missing)
def test_a_door_names_its_count_and_a_wrong_number():
    x = torch.zeros(2, 4)
    with pytest.raises(TypeError, match="linear: takes 6 arguments, got 1"):
        native.C.linear(x)
    with pytest.raises(TypeError, match="integer"):
        native.C.linear(x, torch.zeros(2, 4), None, None, torch.zeros(2, 2), "x")
    with pytest.raises(ValueError, match="does not fit 32 bits"):
        native.C.linear(x, torch.zeros(2, 4), None, None, torch.zeros(2, 2), 2**40)

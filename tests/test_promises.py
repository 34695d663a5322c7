"""Every op, every case, every promise."""

from importlib.util import find_spec

import pytest
import torch

import hexad_kernels
from hexad_kernels.op import OPS, BackendError
from tests import promises
from tests.cases import Call, all_cases, build, cases, castable, rand

ALL = [(name, case) for name, found in all_cases().items() for case in found if not case.bench_only]
BY_DTYPE = [(name, case, dtype) for name, case in ALL for dtype in case.dtypes]


def label(value):
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


# What shapes that are not small go through where a kernel takes seconds.
OF_ALL_CASES = {
    "triton-interpreted": {"test_accuracy"},
    "cuda-emulated": {"test_accuracy", "test_writes_exactly_its_output", "test_batch_invariance"},
}


def slow(backend_name, case, test):
    """Whether an interpreted or emulated kernel would take too long over this."""
    if case.small or backend_name in ("cuda", "triton"):
        return False
    of_this = {"test_accuracy"} if case.only_longer else OF_ALL_CASES[backend_name]
    return case.bench or test not in of_this


@pytest.fixture(autouse=True)
def served_by_the_backend(request, backend_name):
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if "name" not in params:
        yield
        return
    name, case = params["name"], params["case"]
    if backend_name != "cpu":
        if find_spec(f"hexad_kernels.triton.{name}") is None and backend_name.startswith("triton"):
            pytest.skip(f"{name} has no Triton kernel")
        if not OPS[name].cuda and backend_name.startswith("cuda"):
            pytest.skip(f"{name} has no CUDA kernel")
    if backend_name.split("-")[0] in case.without:
        with hexad_kernels.backend(backend_name), pytest.raises(BackendError):
            promises.invoke(name, build(case, case.dtypes[0]))
        pytest.skip("its kernel refuses this case")
    if backend_name != "cpu" and slow(backend_name, case, request.node.originalname):
        pytest.skip(f"too slow for {backend_name}")
    with hexad_kernels.backend(backend_name):
        yield


@pytest.mark.parametrize(("name", "case", "dtype"), BY_DTYPE, ids=label)
def test_accuracy(name, case, dtype):
    call = build(case, dtype)
    promises.accurate(name, call, call.map(lambda t: t.double() if castable(t) else t))


@pytest.mark.parametrize(("name", "case", "dtype"), BY_DTYPE, ids=label)
def test_writes_exactly_its_output(name, case, dtype):
    promises.writes_exactly_its_output(name, build(case, dtype))


@pytest.mark.parametrize(("name", "case", "dtype"), BY_DTYPE, ids=label)
def test_deterministic(name, case, dtype, backend_name):
    threads = () if backend_name == "triton-interpreted" else (1, 2, 3)  # an interpreter has no threads
    promises.deterministic(name, build(case, dtype), threads)


@pytest.mark.parametrize(("name", "case"), ALL, ids=label)
def test_same_bits_on_every_instruction_set(name, case, backend_name):
    if backend_name != "cpu":
        pytest.skip("instruction sets are the CPU's")
    promises.same_on_every_isa(name, build(case, torch.float32))


@pytest.mark.parametrize(("name", "case", "dtype"), [t for t in BY_DTYPE if t[1].row], ids=label)
def test_batch_invariance(name, case, dtype):
    promises.batch_invariant(case, build(case, dtype), lambda call: promises.invoke(name, call))


@pytest.mark.parametrize(("name", "case"), [t for t in ALL if t[1].row and t[1].batch > 1], ids=label)
def test_batch_invariance_check_sees_a_broken_promise(name, case, backend_name):
    """The inverse test: one ulp that depends on the batch size must be found."""
    if backend_name != "cpu":
        pytest.skip("the check is the same for every backend")
    call = build(case, torch.float32)

    def rows(given):
        return [len(a) for a in given.args if isinstance(a, torch.Tensor)]

    def broken(given):
        out = promises.invoke(name, given)
        whole = rows(given) == rows(call)
        return tuple(torch.nextafter(o, o + 1) if o.is_floating_point() and whole else o + whole for o in out)

    if all(o.numel() == 0 for o in promises.invoke(name, promises.fresh(call))):
        pytest.skip("nothing to break in an empty output")
    with pytest.raises(AssertionError):
        promises.batch_invariant(case, call, broken)


@pytest.mark.parametrize(("name", "case"), ALL, ids=label)
def test_strides_do_not_matter(name, case):
    promises.strides_do_not_matter(name, build(case, torch.float32))


@pytest.mark.parametrize(("name", "case"), [next(t for t in ALL if t[0] == name) for name in cases()], ids=label)
def test_opcheck(name, case, backend_name):
    if backend_name != "cpu":
        pytest.skip("registration does not depend on the backend")
    call = build(case, torch.float32)
    arguments = promises.flat_arguments(name, call)
    op = OPS[name]
    graded = [
        a.detach().clone().requires_grad_(i in op.gradients)
        if isinstance(a, torch.Tensor) and a.is_floating_point()
        else a
        for i, a in enumerate(arguments)
    ]
    torch.library.opcheck(op.torch_op, tuple(graded))


def test_every_op_has_cases():
    assert set(cases()) == set(OPS)


def test_the_checks_can_fail(backend_name):
    """A kernel that forgets an element, or writes one too many, is found."""
    if backend_name != "cpu":
        pytest.skip("breaks the CPU's kernel")
    call = Call((rand(torch.Generator().manual_seed(0), 2, 4).float(), torch.zeros(2, 2)), {})
    op = OPS["coupling"]
    native = op.native

    def forgetful(outputs, *args):
        before = outputs[0][-1, -1].clone()
        native(outputs, *args)
        outputs[0][-1, -1] = before

    def greedy(outputs, *args):
        native(outputs, *args)
        torch.as_strided(outputs[0], (1,), (1,), outputs[0].storage_offset() + outputs[0].numel()).fill_(0)

    for broken in (forgetful, greedy):
        op.native = broken
        try:
            with hexad_kernels.backend("cpu"), pytest.raises(AssertionError):
                promises.writes_exactly_its_output("coupling", call)
        finally:
            op.native = native

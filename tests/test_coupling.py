"""coupling beyond the promises: invertible, its log-determinant is the Jacobian's, its errors are clear."""

import math

import pytest
import torch

import hexad_kernels
from hexad_kernels import backend, coupling
from hexad_kernels.coupling import checkerboard

VARIANTS = [
    {"split": split, "flip": flip, "scale_map": scale_map}
    for split in ("channel", "checkerboard")
    for flip in (False, True)
    for scale_map in ("exp", "tanh", "sigmoid")
]


def inputs(split, flip, dtype=torch.float64, shape=(2, 3, 4, 3)):
    g = torch.Generator().manual_seed(1)
    active = shape[1] if split == "checkerboard" else (shape[1] - shape[1] // 2 if flip else shape[1] // 2)
    half = (shape[0], active, *shape[2:])
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in (shape, half, half)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_log_det_is_the_jacobians(options):
    x, t, s = inputs(options["split"], options["flip"])
    with hexad_kernels.backend("reference"):
        for inverse in (False, True):
            _, log_det = coupling(x, t, s, inverse=inverse, **options)
            for b in range(len(x)):
                jacobian = torch.autograd.functional.jacobian(
                    lambda row: coupling(row, t[b : b + 1], s[b : b + 1], inverse=inverse, **options)[0].flatten(),  # noqa: B023
                    x[b : b + 1],
                ).reshape(x[0].numel(), -1)
                assert torch.allclose(log_det[b], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_inverse_undoes_forward(options):
    x, t, s = inputs(options["split"], options["flip"], torch.float32)
    y, forward = coupling(x, t, s, **options)
    back, inverse = coupling(y, t, s, inverse=True, **options)
    assert torch.allclose(back, x, atol=1e-5)
    assert torch.equal(forward, -inverse)


@pytest.mark.parametrize("options", VARIANTS[::4], ids=str)
def test_gradients(options):
    leaves = [a.requires_grad_() for a in inputs(options["split"], options["flip"], shape=(2, 3, 2, 2))]
    assert torch.autograd.gradcheck(lambda *a: coupling(*a, **options), leaves)


def test_float32_gradients_agree_with_plain_autograd():
    leaves = [a.requires_grad_() for a in inputs("channel", False, torch.float32)]
    grads = []
    for name in ("cpu", "reference"):
        with hexad_kernels.backend(name):
            y, log_det = coupling(*leaves, scale_map="tanh")
            grads.append(torch.autograd.grad(y.square().sum() + log_det.sum(), leaves))
    for kernel, plain in zip(*grads):
        assert torch.allclose(kernel, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("options", [*VARIANTS, {"split": "channel", "flip": False, "scale_map": None}], ids=str)
def test_the_backward_kernel_against_float64(options, inverse, dtype):
    """Gradients of chunked parameters, from the output (float32) or the input (bfloat16), odd sizes included."""
    x, t, s = inputs(options["split"], options["flip"], dtype, shape=(3, 5, 7, 5))
    additive = options["scale_map"] is None
    options = options | ({"scale_map": "exp"} if additive else {})
    params = torch.cat([t, s], dim=1)
    g = torch.Generator().manual_seed(3)
    gy, gl = torch.randn(x.shape, generator=g).to(dtype), torch.randn(3, generator=g)

    def grads(backend, cast):
        leaves = [x.to(cast).requires_grad_(), params.to(cast).requires_grad_()]
        t, s = leaves[1].chunk(2, dim=1)
        with hexad_kernels.backend(backend):
            y, log_det = coupling(leaves[0], t, None if additive else s, inverse=inverse, **options)
            if additive:
                return torch.autograd.grad(y, leaves, gy.to(cast))
            return torch.autograd.grad((y, log_det), leaves, (gy.to(cast), gl.to(log_det.dtype)))

    exact = grads("reference", torch.float64)
    eps = 2.0**-23 if dtype == torch.float32 else 2.0**-8
    for kernel, e in zip(grads("cpu", dtype), exact):
        assert torch.allclose(kernel.double(), e, rtol=4 * eps, atol=8 * eps * e.abs().max().item())


def test_an_output_is_kept_for_backward_and_not_the_input():
    x, t, s = (a.requires_grad_() for a in inputs("channel", False, torch.float32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda a: kept.append(a.data_ptr()) or a, lambda a: a):
        y, _ = coupling(x, t, s)
    assert y.data_ptr() in kept
    assert x.data_ptr() not in kept


def test_gradients_of_one_output_or_one_argument():
    x, t, s = inputs("channel", True, torch.float32)
    for wanted in range(3):
        for only in range(2):
            found = []
            for name in ("cpu", "reference"):
                leaves = [a.clone().requires_grad_(i == wanted) for i, a in enumerate((x, t, s))]
                with hexad_kernels.backend(name):
                    out = coupling(*leaves, flip=True, scale_map="sigmoid")[only]
                found.append(out.requires_grad and torch.autograd.grad(out.sum(), leaves[wanted], allow_unused=True)[0])
            if found[1] is False or found[1] is None:
                assert found[0] is None or not found[0].any()
            else:
                assert torch.allclose(*found, rtol=1e-5, atol=1e-6)


def test_gradients_are_the_same_bits_for_any_batch_threads_and_instruction_set():
    native = hexad_kernels.native.C
    leaves = [a.requires_grad_() for a in inputs("channel", False, torch.float32, shape=(3, 4, 150, 150))]
    rows = [[a[i : i + 1].detach().requires_grad_() for a in leaves] for i in range(3)]

    def grads(leaves):
        y, log_det = coupling(*leaves, scale_map="tanh")
        return torch.autograd.grad(y.square().sum() + log_det.sum(), leaves)

    whole, before, threads = grads(leaves), native.isa(), torch.get_num_threads()
    try:
        for isa in native.isa_available().split(","):
            native.set_isa(isa)
            for count in (1, 2):
                torch.set_num_threads(count)
                for a, b in zip(whole, grads(leaves)):
                    assert torch.equal(a, b)
                for i, row in enumerate(rows):
                    for a, b in zip(whole, grads(row)):
                        assert torch.equal(a[i : i + 1], b)
    finally:
        native.set_isa(before)
        torch.set_num_threads(threads)


def test_a_saturated_sigmoid_keeps_its_log_determinant():
    """Where every factor is near 1, s is tiny: its sum must keep relative accuracy all the same."""
    raw = torch.linspace(4, 30, 4000).expand(2, 4000)
    x = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    _, log_det = coupling(x, torch.zeros(2, 4000), raw, scale_map="sigmoid")
    exact = torch.nn.functional.logsigmoid(raw.double() + 2).sum(1)
    assert torch.allclose(log_det.double(), exact, rtol=2e-7)
    raw = torch.tensor([[-200.0, -89.9, -89.0, -60.0, 100.0, float("inf"), -float("inf"), 0.0]])
    for inverse in (False, True):
        kernel = coupling(torch.ones(1, 16), torch.zeros(1, 8), raw, inverse=inverse, scale_map="sigmoid")
        with hexad_kernels.backend("reference"):
            plain = coupling(torch.ones(1, 16), torch.zeros(1, 8), raw, inverse=inverse, scale_map="sigmoid")
        assert torch.allclose(kernel[0], plain[0], rtol=1e-6, atol=1e-38)
        assert torch.equal(kernel[1], plain[1])


@pytest.mark.parametrize("split", ["channel", "checkerboard"])
def test_outputs_beyond_the_cache_have_the_bits_of_their_rows(split):
    x, t, s = inputs(split, False, torch.float32, shape=(2, 8, 520, 513))
    y, log_det = coupling(x, t, s, split=split)
    for i in range(2):
        alone, det = coupling(x[i : i + 1], t[i : i + 1], s[i : i + 1], split=split)
        assert torch.equal(alone, y[i : i + 1])
        assert torch.equal(det, log_det[i : i + 1])


def test_extreme_scales_keep_inf_and_nan_where_the_reference_has_them():
    x = torch.tensor([[0.0, 1.0, float("nan"), 2.0, float("inf"), 1.0]])
    t = torch.zeros(1, 3)
    s = torch.tensor([[100.0, 1.0, float("nan")]])
    kernel = coupling(x, t, s)
    with hexad_kernels.backend("reference"):
        plain = coupling(x, t, s)
    assert torch.equal(kernel[0].isnan(), plain[0].isnan())
    assert torch.equal(kernel[0].isinf(), plain[0].isinf())


@pytest.mark.parametrize("scale_map", ["exp", "tanh", "sigmoid"])
def test_a_checkerboard_reads_no_passive_parameter(scale_map):
    x, shift, log_scale = (torch.randn(2, 3, 4, 6) for _ in range(3))
    passive = checkerboard(x, flip=True).bool().expand_as(x)
    for inverse in (False, True):
        want = coupling(x, shift, log_scale, split="checkerboard", scale_map=scale_map, inverse=inverse)
        for bad in (math.nan, math.inf, -math.inf):
            args = x, shift.masked_fill(passive, bad), log_scale.masked_fill(passive, bad)
            options = {"split": "checkerboard", "scale_map": scale_map, "inverse": inverse}
            torch.testing.assert_close(coupling(*args, **options), want, rtol=0, atol=0)
            with backend("reference"):
                torch.testing.assert_close(coupling(*args, **options), want, rtol=1e-4, atol=1e-4)


def test_compiles_without_graph_breaks():
    x, t, s = inputs("channel", False, torch.float32)
    compiled = torch.compile(lambda *a: coupling(*a)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, t, s), coupling(x, t, s)[0] + 1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [1.0]}, TypeError, "x: got list, wants a torch.Tensor"),
        ({"x": torch.zeros(3)}, ValueError, "x: got shape"),
        ({"x": torch.zeros(2, 4, 3, dtype=torch.int64)}, TypeError, "x: got int64"),
        ({"shift": torch.zeros(2, 3, 4, 3)}, ValueError, "shift: got shape (2, 3, 4, 3), wants (2, 1, 4, 3)"),
        ({"shift": torch.zeros(2, 1, 4, 3, dtype=torch.bfloat16)}, TypeError, "shift: got bfloat16"),
        ({"shift": torch.zeros(2, 1, 4, 3, device="meta")}, ValueError, "shift: is on meta"),
        ({"split": "rows"}, ValueError, "split: got 'rows', wants one of 'channel', 'checkerboard'"),
        ({"scale_map": "softplus"}, ValueError, "scale_map: got 'softplus'"),
        ({"scale_map": "tanh", "clamp": 0.0}, ValueError, "clamp: got 0.0, wants a positive number"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    x, t, s = inputs("channel", False, torch.float32)
    arguments = {"x": x, "shift": t, "log_scale": s} | change
    with pytest.raises(error) as caught:
        coupling(**arguments)
    assert text in str(caught.value)

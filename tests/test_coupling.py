"""coupling beyond the promises: invertible, its log-determinant is the Jacobian's, its errors are clear."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import coupling

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


def test_extreme_scales_keep_inf_and_nan_where_the_reference_has_them():
    x = torch.tensor([[0.0, 1.0, float("nan"), 2.0, float("inf"), 1.0]])
    t = torch.zeros(1, 3)
    s = torch.tensor([[100.0, 1.0, float("nan")]])
    kernel = coupling(x, t, s)
    with hexad_kernels.backend("reference"):
        plain = coupling(x, t, s)
    assert torch.equal(kernel[0].isnan(), plain[0].isnan())
    assert torch.equal(kernel[0].isinf(), plain[0].isinf())


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

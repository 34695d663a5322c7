"""invconv beyond the promises: it is a convolution, folding and inverting are exact, gradients, errors."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import invconv
from hexad_kernels.invconv import fold_actnorm, invert_affine


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(c, dtype=torch.float64):
    weight = torch.linalg.qr(normal(0, c, c))[0] + 0.1 * normal(1, c, c)
    return [t.to(dtype) for t in (weight, 0.3 * normal(2, c), normal(3, c))]


@pytest.mark.parametrize("shape", [(2, 12, 5, 3), (3, 130, 17), (4, 6)], ids=str)
def test_it_is_the_einsum(shape):
    x, weight, bias = normal(0, *shape), normal(1, shape[1], shape[1]), normal(2, shape[1])
    want = torch.einsum("oc,bc...->bo...", weight, x) + bias.view(-1, *[1] * (len(shape) - 2))
    with hexad_kernels.backend("cpu"):
        got = invconv(x.float(), weight.float(), bias.float())
    assert torch.allclose(got.double(), want, rtol=1e-4, atol=1e-4)
    assert torch.allclose(invconv(x.bfloat16(), weight.bfloat16(), bias.bfloat16()).double(), want, rtol=0.05, atol=0.3)


def test_a_fold_is_actnorm_and_then_the_convolution():
    weight, log_scale, bias = layer(5)
    x = normal(4, 2, 5, 3, 4)
    folded, offset, log_det = fold_actnorm(weight, log_scale, bias)
    normalised = torch.exp(log_scale).view(-1, 1, 1) * (x + bias.view(-1, 1, 1))
    with hexad_kernels.backend("reference"):
        assert torch.allclose(invconv(x, folded, offset), torch.einsum("oc,bchw->bohw", weight, normalised))
    assert torch.allclose(log_det, torch.linalg.slogdet(folded).logabsdet)


@pytest.mark.parametrize("c", [1, 4, 48])
def test_the_inverse_undoes_the_forward_map(c):
    weight, log_scale, bias = layer(c, torch.float32)
    folded, offset, log_det = fold_actnorm(weight, log_scale, bias)
    assert folded.dtype == offset.dtype == log_det.dtype == torch.float32 and log_det.shape == ()
    x = normal(4, 3, c, 4, 4).float()
    back = invconv(invconv(x, folded, offset), *invert_affine(folded, offset))
    assert torch.allclose(back, x, atol=2e-5)


def test_gradients():
    leaves = [normal(0, 2, 3, 2, 2), normal(1, 3, 3), normal(2, 3)]
    leaves = [t.requires_grad_() for t in leaves]
    assert torch.autograd.gradcheck(invconv, leaves)
    own = [t.requires_grad_() for t in layer(3)]
    assert torch.autograd.gradcheck(fold_actnorm, own)


def test_float32_gradients_agree_with_plain_autograd():
    leaves = [t.float().requires_grad_() for t in (normal(0, 2, 5, 3, 3), normal(1, 5, 5), normal(2, 5))]
    grads = []
    for name in ("cpu", "reference"):
        with hexad_kernels.backend(name):
            grads.append(torch.autograd.grad(invconv(*leaves).square().sum(), leaves))
    for kernel, plain in zip(*grads):
        assert torch.allclose(kernel, plain, rtol=1e-4, atol=1e-4)


def test_nan_and_inf_stay_in_their_pixel():
    x = torch.ones(1, 3, 4)
    x[0, 1, 2], x[0, 2, 3] = float("nan"), float("inf")
    y = invconv(x, torch.eye(3) + 1)
    assert y[0, :, 2].isnan().all() and y[0, :, 3].isinf().all() and y[0, :, :2].isfinite().all()


def test_more_channels_than_the_kernel_takes():
    x, weight = normal(0, 1, 1025, 2).float(), torch.eye(1025)
    with pytest.warns(UserWarning, match="1025 channels"):
        assert torch.allclose(invconv(x, weight), x)


def test_compiles_without_graph_breaks():
    x, weight = normal(0, 2, 4, 3, 3).float(), normal(1, 4, 4).float()
    compiled = torch.compile(lambda *a: invconv(*a) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, weight), invconv(x, weight) + 1)


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([[1.0, 2.0], [2.0, 4.0]]),
        torch.arange(9.0).reshape(3, 3),
        torch.zeros(2, 2),
        torch.full((2, 2), float("nan")),
    ],
    ids=["rank_one", "rank_two", "zero", "nan"],
)
def test_singular_weights(weight):
    c = len(weight)
    with pytest.raises(ValueError, match=f"weight: got a singular {c}x{c} matrix"):
        invert_affine(weight, torch.zeros(c))
    with pytest.raises(ValueError, match="singular"):
        fold_actnorm(weight, torch.zeros(c), torch.zeros(c))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": 1.0}, TypeError, "x: got float, wants a torch.Tensor"),
        ({"x": torch.zeros(3)}, ValueError, "x: got shape (3,), wants (batch, channels, *spatial)"),
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, TypeError, "x: got int32"),
        ({"weight": torch.zeros(4, 4)}, ValueError, "weight: got shape (4, 4), wants (3, 3)"),
        ({"weight": torch.zeros(3, 3).double()}, TypeError, "weight: got float64, wants x's float32"),
        ({"weight": torch.zeros(3, 3, device="meta")}, ValueError, "weight: is on meta"),
        ({"bias": torch.zeros(1)}, ValueError, "bias: got shape (1,), wants (3)"),
        ({"bias": torch.zeros(3).bfloat16()}, TypeError, "bias: got bfloat16, wants x's float32"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    arguments = {"x": torch.zeros(2, 3, 4), "weight": torch.eye(3), "bias": torch.zeros(3)} | change
    with pytest.raises(error) as caught:
        invconv(**arguments)
    assert text in str(caught.value)


def test_bad_affine_maps():
    with pytest.raises(ValueError, match=r"weight: got shape \(2, 3\), wants \(2, 2\)"):
        invert_affine(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"bias: got shape \(3,\), wants \(2\)"):
        invert_affine(torch.eye(2), torch.zeros(3))
    with pytest.raises(ValueError, match="log_scale: got shape"):
        fold_actnorm(torch.eye(2), torch.zeros(3), torch.zeros(2))

"""norm beyond the promises: torch's own functions, hard rows, gradients, clear errors."""

import pytest
import torch
from torch.nn import functional as F

import hexad_kernels
from hexad_kernels import native, norm
from tests import promises


def draw(*shape, dtype=torch.float32, seed=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 72, 1030])
def test_layer_and_rms_agree_with_torch(size):
    x, w, b = draw(3, 4, size), draw(size, seed=6), draw(size, seed=7)
    assert torch.allclose(norm(x, w, b, eps=1e-3), F.layer_norm(x, (size,), w, b, 1e-3), rtol=1e-5, atol=1e-5)
    assert torch.allclose(norm(x), F.layer_norm(x, (size,)), rtol=1e-5, atol=1e-5)
    assert torch.allclose(norm(x, w, kind="rms"), F.rms_norm(x, (size,), w, 1e-5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 6, 5, 5), 3), ((2, 6, 5, 5), 6), ((2, 6, 1), 2), ((3, 6), 1), ((1, 4, 3, 2, 2), 2), ((1, 2, 40, 40), 1)],
)
def test_group_agrees_with_torch(shape, groups):
    x, w, b = draw(*shape), draw(shape[1], seed=6), draw(shape[1], seed=7)
    y = norm(x, w, b, kind="group", num_groups=groups, activation="silu")
    assert torch.allclose(y, F.silu(torch.group_norm(x, groups, w, b)), rtol=1e-5, atol=1e-5)


def test_modulation():
    x, scale, shift = draw(2, 3, 4, 20), draw(2, 20, seed=6), draw(2, 20, seed=7)
    plain = F.layer_norm(x, (20,))
    want = plain * (1 + scale[:, None, None]) + shift[:, None, None]
    assert torch.allclose(norm(x, scale=scale, shift=shift), want, atol=1e-5)
    assert torch.allclose(norm(x, shift=shift), plain + shift[:, None, None], atol=1e-5)
    chunks = torch.cat([shift, scale], 1)
    assert torch.equal(norm(x, scale=chunks[:, 20:], shift=chunks[:, :20]), norm(x, scale=scale, shift=shift))
    grouped = norm(x, kind="group", num_groups=1, scale=scale[:, :3], shift=shift[:, :3])
    want = torch.group_norm(x, 1) * (1 + scale[:, :3, None, None]) + shift[:, :3, None, None]
    assert torch.allclose(grouped, want, atol=1e-5)


def test_rows_far_from_zero_and_long_rows():
    for x in (draw(2, 768) + 1000, draw(1, 100_000) + 30):
        exact = F.layer_norm(x.double(), x.shape[1:])
        error = (norm(x) - exact).abs().max()
        assert error <= 2 * (F.layer_norm(x, x.shape[1:]) - exact).abs().max() + 2**-22
        assert error < 1e-6


@pytest.mark.parametrize("kind", ["layer", "group"])
def test_rows_whose_first_elements_lie_far_from_the_rest(kind):
    """The first elements' mean is where one pass takes both moments; here it needs another."""
    x = draw(3, 4, 1030)
    x[:, :, :16] += 1e4
    x[1, :, 16:] += 300
    call = promises.Call((x,), {"kind": kind, "num_groups": 4 if kind == "group" else None})
    promises.accurate("norm", call, call.map(lambda t: t.double()))


def test_constant_rows_give_the_bias():
    x, b = torch.full((2, 40), 3.7), draw(40)
    assert torch.allclose(norm(x, None, b), b.expand(2, -1), atol=1e-4)
    assert torch.equal(norm(torch.zeros(2, 40), None, b, kind="rms"), b.expand(2, -1))


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_stay_in_their_row(kind, value):
    x = draw(3, 40)
    clean = norm(x, kind=kind)
    x[1, 7] = value
    y = norm(x, kind=kind)
    with hexad_kernels.backend("reference"):
        plain = norm(x, kind=kind)
    assert torch.equal(y.isnan(), plain.isnan())
    assert torch.equal(y[0], clean[0]) and torch.equal(y[2], clean[2])


def test_views():
    x, w = draw(4, 6, 10), draw(10)
    assert torch.equal(norm(x.transpose(0, 1), w), norm(x, w).transpose(0, 1))
    assert torch.equal(norm(x[:, 2], w), norm(x, w)[:, 2])
    image = draw(2, 8, 3, 5)
    last = image.to(memory_format=torch.channels_last)
    assert torch.equal(norm(last, kind="group", num_groups=4), norm(image, kind="group", num_groups=4))


@pytest.mark.parametrize("options", [{"kind": "layer"}, {"kind": "rms"}, {"kind": "group", "num_groups": 2}], ids=str)
def test_gradients(options):
    shape = (2, 4, 3) if options["kind"] == "group" else (2, 3, 4)
    shapes = shape, (4,), (4,), (2, 4), (2, 4)
    leaves = [draw(*s, dtype=torch.float64, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    assert torch.autograd.gradcheck(
        lambda x, w, b, scale, shift: norm(x, w, b, scale=scale, shift=shift, activation="silu", **options), leaves
    )


def test_gradients_of_a_bias_without_a_weight():
    x, bias = torch.randn(2, 6, 5, requires_grad=True), torch.randn(6, requires_grad=True)
    grads = torch.autograd.grad(norm(x, None, bias, kind="group", num_groups=2).sum(), (x, bias))
    torch.testing.assert_close(grads[1], torch.full((6,), 10.0))
    torch.testing.assert_close(grads[0], torch.zeros_like(x), rtol=0, atol=1e-5)


def test_float32_gradients_agree_with_plain_autograd():
    leaves = [draw(*s, seed=i).requires_grad_() for i, s in enumerate(((5, 33), (33,), (33,)))]
    grads = []
    for name in ("cpu", "reference"):
        with hexad_kernels.backend(name):
            grads.append(torch.autograd.grad(norm(*leaves).pow(3).sum(), leaves))
    for kernel, plain in zip(*grads):
        assert torch.allclose(kernel, plain, rtol=1e-4, atol=1e-4)


def test_compiles_without_graph_breaks():
    x, w = draw(2, 8, 4), draw(8)
    compiled = torch.compile(
        lambda x: norm(x, w, kind="group", num_groups=2, activation="silu") + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), norm(x, w, kind="group", num_groups=2, activation="silu") + 1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": None}, TypeError, "x: got NoneType, wants a torch.Tensor"),
        ({"x": torch.zeros(3, 4, dtype=torch.int32)}, TypeError, "x: got int32"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: got shape (), wants (batch, ..., features)"),
        (
            {"x": torch.zeros(4), "scale": torch.zeros(1, 4)},
            ValueError,
            "x: got shape (4,), wants (batch, ..., features)",
        ),
        ({"x": torch.zeros(4), "kind": "group"}, ValueError, "x: got shape (4,), wants (batch, channels, *spatial)"),
        ({"weight": torch.zeros(3)}, ValueError, "weight: got shape (3,), wants (4) = x's features"),
        ({"bias": torch.zeros(4).double()}, TypeError, "bias: got float64, wants x's float32"),
        ({"scale": torch.zeros(4)}, ValueError, "scale: got shape (4,), wants (3, 4) = x's batch and x's features"),
        ({"shift": torch.zeros(2, 4)}, ValueError, "shift: got shape (2, 4), wants (3, 4)"),
        ({"shift": torch.zeros(3, 4, device="meta")}, ValueError, "shift: is on meta, wants x's device cpu"),
        ({"kind": "batch"}, ValueError, "kind: got 'batch', wants one of 'layer', 'rms', 'group'"),
        ({"kind": "group"}, ValueError, "num_groups: got None, wants a divisor of x's 4 channels"),
        ({"kind": "group", "num_groups": 3}, ValueError, "num_groups: got 3, wants a divisor of x's 4 channels"),
        ({"kind": "group", "num_groups": 0}, ValueError, "num_groups: got 0, wants a positive number"),
        ({"num_groups": 2}, ValueError, "num_groups: got 2, wants None unless kind is 'group'"),
        ({"eps": -1.0}, ValueError, "eps: got -1.0, wants a number >= 0"),
        ({"eps": float("nan")}, ValueError, "eps: got nan, wants a number >= 0"),
        ({"activation": "relu"}, ValueError, "activation: got 'relu', wants one of None, 'silu'"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    with pytest.raises(error) as caught:
        norm(**({"x": draw(3, 4)} | change))
    assert text in str(caught.value)


def test_the_door_guards_memory():
    x, w, m = draw(3, 4), draw(4), draw(3, 4)
    y = torch.empty(3, 4)
    for bad in ((x, w[:3], None, None, None, y, 0, 1e-5, 0, 0), (x, w, None, m[:2], None, y, 0, 1e-5, 0, 0),
                (x, w, None, None, None, y[:2], 0, 1e-5, 0, 0), (x, w, None, None, None, y, 2, 1e-5, 3, 0),
                (x, w, None, None, None, y, 3, 1e-5, 0, 0),
                (x.t(), w[:3], None, None, None, y.t(), 0, 1e-5, 0, 0)):  # fmt: skip
        with pytest.raises(ValueError):
            native.C.norm(*bad)

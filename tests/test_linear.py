"""linear beyond the promises: torch's own functions, tails of gelu, rows alone, gradients, clear errors."""

import pytest
import torch
from torch.nn import functional as F

import hexad_kernels
from hexad_kernels import linear, native
from hexad_kernels.linear import ACTIVATIONS

FUNCTIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
GATES = {"silu_gate": F.silu, "gelu_gate": F.gelu}


def inputs(*leading, k=50, n=37, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    shapes = (*leading, k), (n, k), (n,), (*leading, n)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def test_every_activation_is_tested():
    assert set(FUNCTIONS) | set(GATES) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", FUNCTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_agrees_with_torch(activation, dtype):
    x, w, b, r = inputs(4, 3, dtype=dtype)
    exact = FUNCTIONS[activation](F.linear(x.double(), w.double(), b.double())) + r.double()
    tolerance = 2e-5 if dtype == torch.float32 else 2**-8
    y = linear(x, w, b, activation=activation, residual=r)
    assert y.dtype == dtype and y.is_contiguous()
    assert torch.allclose(y.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gates_come_first_then_ups(gate, dtype):
    x, w, b, _ = inputs(4, 3, n=74, dtype=dtype)
    r = inputs(4, 3, dtype=dtype)[3]
    g, u = F.linear(x.double(), w.double(), b.double()).chunk(2, -1)
    exact = GATES[gate](g) * u + r.double()
    tolerance = 1e-4 if dtype == torch.float32 else 2**-7
    y = linear(x, w, b, activation=gate, residual=r)
    assert y.shape == (4, 3, 37)
    assert torch.allclose(y.double(), exact, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match="weight: got 73 rows, a gate wants an even number"):
        linear(x, w[1:], b[1:], activation=gate)


@pytest.mark.parametrize("activation", [a for a in FUNCTIONS if a], ids=str)
def test_activations_on_their_own(activation):
    """One input, weight 1: the activation alone, in steps of 1/128 from -16 to 16, and at the special values."""
    z = torch.cat([torch.arange(-2048, 2049) / 128.0, torch.tensor([1e-30, -1e-30, 1e20, -1e20])])[:, None]
    y = linear(z, torch.ones(1, 1), activation=activation)
    exact, plain = FUNCTIONS[activation](z.double()), FUNCTIONS[activation](z)
    if activation == "gelu":
        exact = z.double() * torch.special.erfc(-z.double() / 2**0.5) / 2
    assert (y - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-7
    special = torch.tensor([[float("inf")], [float("-inf")], [float("nan")], [0.0]])
    # In float64: torch's float32 gelu of +inf is NaN.
    got, want = linear(special, torch.ones(1, 1), activation=activation), FUNCTIONS[activation](special.double())
    assert torch.equal(got.isnan(), want.isnan()) and (got.double() == want)[~want.isnan()].all()


def test_gelu_keeps_relative_accuracy_in_its_tail():
    z = torch.linspace(-12, -0.01, 5000)[:, None]
    y = linear(z, torch.ones(1, 1), activation="gelu").double()
    exact = z.double() * torch.special.erfc(-z.double() / 2**0.5) / 2
    assert ((y - exact) / exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_the_others(dtype):
    x, w, b, _ = inputs(14, dtype=dtype)
    whole = linear(x, w, b, activation="gelu")
    for count in range(1, 14):
        for first in (0, 14 - count):
            part = linear(x[first : first + count], w, b, activation="gelu")
            assert torch.equal(part, whole[first : first + count]), (first, count)
    assert torch.equal(linear(x[3], w, b, activation="gelu"), whole[3])
    assert torch.equal(linear(x.view(2, 7, -1), w, b, activation="gelu").view(14, -1), whole)


def test_a_column_does_not_depend_on_the_others():
    x, w, b, _ = inputs(5)
    whole = linear(x, w, b)
    for count in (1, 2, 3, 15, 16, 17, 36):
        assert torch.equal(linear(x, w[:count], b[:count]), whole[:, :count])
        assert torch.equal(linear(x, w[-count:], b[-count:]), whole[:, -count:])


def test_views():
    x, w, b, r = inputs(4, 3)
    want = linear(x, w, b, residual=r)
    assert torch.equal(linear(x.transpose(0, 1), w, b, residual=r.transpose(0, 1)), want.transpose(0, 1))
    assert torch.equal(linear(x, w.t().contiguous().t(), b, residual=r), want)
    assert torch.equal(linear(x[:, 1], w, b, residual=r[:, 1]), want[:, 1])
    one = torch.tensor(2.0)
    assert torch.equal(linear(one.expand(3, 50), w, one.expand(37)), linear(torch.full((3, 50), 2.0), w, b * 0 + 2))


def test_empty():
    x, w, b, _ = inputs(2)
    assert linear(x[:0], w, b).shape == (0, 37)
    assert linear(x, w[:0], b[:0]).shape == (2, 0)
    assert torch.equal(linear(x[:, :0], w[:, :0], b), b.expand(2, -1))


@pytest.mark.parametrize("activation", FUNCTIONS, ids=str)
def test_gradients(activation):
    leaves = [t.requires_grad_() for t in inputs(2, 2, k=3, n=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda x, w, b, r: linear(x, w, b, activation=activation, residual=r), leaves)


def test_float32_gradients_agree_with_plain_autograd():
    leaves = [t.requires_grad_() for t in inputs(5)]
    grads = []
    for name in ("cpu", "reference"):
        with hexad_kernels.backend(name):
            y = linear(*leaves[:3], activation="gelu", residual=leaves[3])
            grads.append(torch.autograd.grad(y.square().sum(), leaves))
    for kernel, plain in zip(*grads):
        assert torch.allclose(kernel, plain, rtol=1e-4, atol=1e-4)


def test_compiles_without_graph_breaks():
    x, w, b, r = inputs(5)
    compiled = torch.compile(
        lambda x: linear(x, w, b, activation="gelu", residual=r) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), linear(x, w, b, activation="gelu", residual=r) + 1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": [1.0]}, TypeError, "x: got list, wants a torch.Tensor"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: got a scalar, wants (..., in features)"),
        ({"x": torch.zeros(2, 50, dtype=torch.int64)}, TypeError, "x: got int64"),
        ({"x": torch.zeros(2, 49)}, ValueError, "weight: got shape (37, 50), wants (any, 49)"),
        ({"weight": torch.zeros(50)}, ValueError, "weight: got 1 dimensions (50,), wants 2"),
        ({"weight": torch.zeros(37, 50, dtype=torch.bfloat16)}, TypeError, "weight: got bfloat16, wants x's float32"),
        ({"weight": torch.zeros(37, 50, device="meta")}, ValueError, "weight: is on meta, wants x's device cpu"),
        ({"bias": torch.zeros(36)}, ValueError, "bias: got shape (36,), wants (37) = weight's rows"),
        ({"bias": 1.0}, TypeError, "bias: got float, wants a torch.Tensor"),
        ({"residual": torch.zeros(37)}, ValueError, "residual: got shape (37,), wants (2, 37)"),
        ({"activation": "swish"}, ValueError, "activation: got 'swish', wants one of None, 'relu', 'gelu'"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    x, w, b, r = inputs(2)
    with pytest.raises(error) as caught:
        linear(**({"x": x, "weight": w, "bias": b, "residual": r} | change))
    assert text in str(caught.value)


def test_the_door_guards_memory():
    x, w, b, r = inputs(2)
    y = torch.empty(2, 37)
    for bad in ((x, w[:, :49], b, r, y, 0), (x, w, b[:36], r, y, 0), (x, w, b, r[:1], y, 0), (x, w, b, r, y[:1], 0),
                (x, w.t(), b, r, y, 0), (x, w, b, r, y, 7), (x, w.double(), b, r, y, 0)):  # fmt: skip
        with pytest.raises(ValueError):
            native.C.linear(*bad)

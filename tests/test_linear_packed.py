"""Packed and quantised weights: the dense weight's bits, what rounding costs, outliers, clear errors."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import PackedWeight, linear, native, pack, quantize

FLOATS = (torch.float32, torch.bfloat16)
# What quantising costs for normal weights (and inputs): relative Frobenius error of the weight, of the product.
COSTS = {"int8": (0.009, 0.014), "int4": (0.1, 0.1)}


def inputs(*leading, k=50, n=37, dtype=torch.float32, seed=3):
    g = torch.Generator().manual_seed(seed)
    shapes = (*leading, k), (n, k), (n,), (*leading, n)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def off(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.fixture(params=native.C.isa_available().split(","))
def every_isa(request):
    before = native.C.isa()
    native.C.set_isa(request.param)
    yield request.param
    native.C.set_isa(before)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("k", [1, 15, 16, 17, 127, 129, 300])
def test_packing_changes_no_bit(every_isa, dtype, k):
    x, w, b, r = inputs(21, k=k, n=83, dtype=dtype)
    packed = pack(w)
    dense = linear(x, w, b, activation="silu", residual=r)
    for rows in (*range(1, 15), 21):
        some = x[:rows], packed, b
        assert torch.equal(linear(*some, activation="silu", residual=r[:rows]), dense[:rows]), rows


HEIGHTS = (1, 15, 16, 17, 31, 32, 33, 49, 70)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 257, 530])
@pytest.mark.parametrize("n", [17, 83, 300])
def test_any_height_gives_a_rows_bits(every_isa, k, n):
    """Tiles of 16 rows by 32 inputs, filled up or cut short: a row alone, packed or not, is the row in any batch."""
    x, w, b, r = inputs(70, k=k, n=n, dtype=torch.bfloat16)
    packed, whole = pack(w), linear(x, w, b, residual=r)
    exact = x.double() @ w.double().T + b.double() + r.double()
    assert ((whole.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4 * k**0.5).all()
    assert torch.equal(torch.cat([linear(x[i], w, b, residual=r[i])[None] for i in range(70)]), whole)
    for rows in HEIGHTS:
        for part in (slice(0, rows), slice(70 - rows, 70)):
            for weight in (w, packed):
                assert torch.equal(linear(x[part], weight, b, residual=r[part]), whole[part]), (rows, part)


@pytest.mark.parametrize("k", [1, 31, 33, 64, 257])
@pytest.mark.parametrize("rows", HEIGHTS)
def test_nan_and_infinity_stay_where_they_are(every_isa, rows, k):
    """In bfloat16: what fills up a tile must not meet an infinity of another row, nor of another output."""
    x, w, b, _ = inputs(rows, k=k, n=83, dtype=torch.bfloat16)
    want = linear(x, w, b)
    row, output = rows // 2, 82
    for value in (float("nan"), float("inf")):
        bad_x, bad_w = x.clone(), w.clone()
        bad_x[row, -1], bad_w[output, -1] = value, value
        for weight in (w, pack(w)):
            got = linear(bad_x, weight, b)
            assert not got[row].isfinite().any()
            got[row] = want[row]
            assert torch.equal(got, want)
        for weight in (bad_w, pack(bad_w)):
            got = linear(x, weight, b)
            assert not got[:, output].isfinite().any()
            got[:, output] = want[:, output]
            assert torch.equal(got, want)


@pytest.mark.parametrize("rows", HEIGHTS)
def test_strided_inputs(every_isa, rows):
    x, w, b, _ = inputs(rows, k=300, n=83, dtype=torch.bfloat16)
    wide, high = torch.full((rows, 333), float("nan")).bfloat16(), torch.full((83, 311), float("nan")).bfloat16()
    wide[:, 5:305], high[:, 3:303] = x, w
    want = linear(x, w, b)
    assert torch.equal(linear(wide[:, 5:305], w, b), want)
    assert torch.equal(linear(wide[:, 5:305], pack(w), b), want)
    assert torch.equal(linear(x, high[:, 3:303], b), want)
    # Rows 4 KB apart share sets of the cache, and are copied.
    apart = torch.full((rows, 2048), float("nan")).bfloat16()
    apart[:, :300] = x
    assert torch.equal(linear(apart[:, :300], w, b), want)
    assert torch.equal(linear(apart[:, :300], pack(w), b), want)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", COSTS)
@pytest.mark.parametrize("k", [1, 63, 65, 530, 1100])
def test_many_rows_of_a_quantised_weight_are_rows_alone(every_isa, form, dtype, k):
    x, w, b, _ = inputs(530, k=k, n=83, dtype=dtype)
    packed = quantize(w, form)
    whole = linear(x, packed, b)
    for row in (0, 15, 16, 511, 512, 529):
        assert torch.equal(linear(x[row], packed, b), whole[row]), row
    for rows in HEIGHTS:
        assert torch.equal(linear(x[:rows], packed, b), whole[:rows]), rows
    before = native.C.isa()
    native.C.set_isa(native.C.isa_available().split(",")[0])
    plain = linear(x.float(), packed, b.float())
    native.C.set_isa(before)
    assert torch.equal(linear(x.float(), packed, b.float()), plain)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("gate", ["silu_gate", "gelu_gate"])
def test_packed_gates(every_isa, dtype, gate):
    x, w, b, _ = inputs(70, k=300, n=160, dtype=dtype)
    dense = linear(x, w, b, activation=gate)
    assert dense.shape == (70, 80)
    for rows in (1, 8, 19, 33, 70):
        assert torch.equal(linear(x[:rows], pack(w), b, activation=gate), dense[:rows])
    with pytest.raises(ValueError, match="weight: got 40 rows, a packed gate wants a multiple of 32"):
        linear(x, pack(w[:40]), activation=gate)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 2), (37, 50), (5, 33), (0, 4), (4, 0)])
def test_unpacking_gives_the_weight_back(shape, dtype):
    w = inputs(k=shape[1], n=shape[0], dtype=dtype)[1]
    packed = pack(w)
    assert packed.error == 0 and packed.shape == shape and packed.dtype == dtype
    assert packed.unpack().dtype == dtype and torch.equal(packed.unpack(), w)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", COSTS)
def test_quantising_keeps_within_half_a_step(form, dtype):
    w = inputs(k=100, n=37, dtype=dtype)[1].float()
    w[5] *= 1000
    w[6] = 0
    w[7] *= 1e-20
    w[8, 0:32] = 3.0
    w = w.to(dtype)
    packed = quantize(w, form)
    groups = torch.nn.functional.pad(w.float(), (0, -100 % 32)).unflatten(1, (-1, 32))
    if form == "int8":
        step = (w.float().abs().amax(1, keepdim=True) / 127).expand(-1, 100)
    else:
        # The minimum and the scale are bfloat16: up to 2^-8 of either more.
        span = (groups.amax(2) - groups.amin(2)) / 15 + groups.abs().amax(2) * 2**-8
        step = span.repeat_interleave(32, 1)[:, :100]
    away = (packed.unpack().float() - w.float()).abs()
    rounding = w.float().abs() * (2**-8 if dtype == torch.bfloat16 else 2**-22)
    assert (away <= 0.51 * step + rounding).all()


@pytest.mark.parametrize("form", COSTS)
def test_errors_are_reported_and_small(form):
    x, w, _, _ = inputs(9, k=1000, n=64)
    packed = quantize(w, form)
    of_weight, of_product = COSTS[form]
    assert packed.error == pytest.approx(off(packed.unpack(), w.double()), rel=1e-5)
    assert of_weight / 3 < packed.error < of_weight
    assert off(linear(x, packed), x.double() @ w.double().T) < of_product
    bits = {"int8": 8, "int4": 5}[form]
    assert packed.nbytes <= bits / 8 * 64 * 1024 + 4 * 64


@pytest.mark.parametrize("form", COSTS)
def test_outliers_among_the_inputs_spoil_only_their_group(form):
    """A few channels a hundred times larger, as language models have them."""
    x, w, _, _ = inputs(9, k=2048, n=64)
    packed = quantize(w, form)
    dense = packed.unpack().double()
    channels = [17, 900, 1500]
    x[:, channels] *= 100
    exact = x.double() @ dense.T
    quiet = x.double().clone()
    quiet[:, channels] = 0
    # What the other channels contribute is what rounding could lose.
    size = (quiet @ dense.T).norm()
    assert off(linear(x, packed), exact) < 0.025
    assert (linear(x, packed).double() - exact).norm() < 0.1 * size
    scale = x.abs().amax(1, keepdim=True) / 127
    one_scale = ((x / scale).round() * scale).double() @ dense.T
    assert (one_scale - exact).norm() > 0.25 * size, "one scale for a whole row would do as well"


@pytest.mark.parametrize("form", COSTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_stay_in_their_row(every_isa, form, value):
    x, w, b, _ = inputs(12, k=130)
    packed = quantize(w, form)
    want = linear(x, packed, b)
    x[3, 70] = value
    got = linear(x, packed, b)
    assert got[3].isnan().all()
    others = [i for i in range(12) if i != 3]
    assert torch.equal(got[others], want[others])


@pytest.mark.parametrize("form", COSTS)
def test_zero_and_huge_inputs(form):
    _, w, b, _ = inputs(1, k=64)
    packed = quantize(w, form)
    assert torch.equal(linear(torch.zeros(2, 64), packed, b), b.expand(2, -1))
    assert torch.equal(linear(torch.full((1, 64), 1e-42), packed, b), b[None])
    x = torch.ones(1, 64)
    assert torch.allclose(linear(x * 1e30, packed) / 1e30, linear(x, packed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["float32", "bfloat16", *COSTS])
def test_weights_of_another_form_than_the_inputs(form):
    x, w, _, _ = inputs(5, dtype=torch.bfloat16)
    packed = quantize(w, form) if form in COSTS else pack(w.to(getattr(torch, form)))
    got = linear(x, packed)
    assert got.dtype == torch.bfloat16
    assert off(got, x.double() @ packed.unpack().double().T) < 0.02
    wide = linear(x.float(), packed)
    assert wide.dtype == torch.float32 and torch.allclose(got.float(), wide, rtol=2**-7, atol=2**-7)


def test_gradients_reach_the_inputs():
    x, w, b, _ = inputs(5)
    packed = quantize(w, "int8")
    x.requires_grad_()
    b.requires_grad_()
    by_x, by_bias = torch.autograd.grad(linear(x, packed, b).sum(), (x, b))
    assert torch.allclose(by_x, packed.unpack().sum(0).expand(5, -1), rtol=1e-5, atol=1e-5)
    assert torch.equal(by_bias, torch.full((37,), 5.0))


def test_compiles_without_graph_breaks():
    x, w, b, _ = inputs(5)
    packed = quantize(w, "int4")
    compiled = torch.compile(lambda x: linear(x, packed, b, activation="relu") + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), linear(x, packed, b, activation="relu") + 1)


def test_who_serves_a_packed_weight():
    x, w, _, _ = inputs(2)
    told = hexad_kernels.explain("linear", x, pack(w))
    assert told.op == "linear_packed" and told.served_by == "cpu"
    assert "the tensors are on cpu" in told.refusals["cuda"] and "the tensors are on cpu" in told.refusals["triton"]


def test_what_a_packed_weight_says_of_itself():
    packed = quantize(inputs(k=64, n=32)[1], "int8")
    assert repr(packed).startswith("PackedWeight(32 x 64, int8, 2176 bytes, error 0.00")
    assert packed.device == torch.device("cpu") and packed.panels.dtype == torch.int32


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda w: pack([1.0]), TypeError, "weight: got list, wants a torch.Tensor"),
        (lambda w: pack(w[0]), ValueError, "weight: got 1 dimensions"),
        (lambda w: pack(w.double()), TypeError, "weight: got float64, wants float32 or bfloat16"),
        (lambda w: quantize(w, "int5"), ValueError, "form: got 'int5', wants one of 'int8', 'int4'"),
        (lambda w: quantize(w / 0, "int8"), ValueError, "weight: has NaN or infinity"),
        (
            lambda w: linear(torch.zeros(2, 49), pack(w)),
            ValueError,
            "weight: got shape (37, 50), wants (any, 49) = x's last dimension",
        ),
        (lambda w: linear(torch.zeros(2, 50), pack(w), torch.zeros(36)), ValueError, "bias: got shape (36,)"),
        (lambda w: linear(torch.zeros(2, 50).int(), pack(w)), TypeError, "x: got int32"),
        (
            lambda w: linear(torch.zeros(2, 50), PackedWeight(pack(w).panels.float(), "float32", w.shape, w.dtype)),
            TypeError,
            "panels: got float32, wants int32",
        ),
        (
            lambda w: linear(torch.zeros(2, 51), quantize(w, "int8")),  # as many words as 50 inputs take
            ValueError,
            "weight: got shape (37, 50), wants (any, 51) = x's last dimension",
        ),
        (lambda w: PackedWeight(pack(w).panels, "int5", w.shape, w.dtype), ValueError, "form: got 'int5'"),
        (lambda w: quantize(torch.tensor([[3e38, -3e38]]), "int4"), ValueError, "weight: spans more than float32"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error) as caught:
        call(inputs(2)[1])
    assert text in str(caught.value)


def test_the_door_guards_memory():
    x, w, b, r = inputs(2)
    y = torch.empty(2, 37)
    for form, packed in ((0, pack(w)), (2, quantize(w, "int8")), (3, quantize(w, "int4"))):
        space = {0: None, 2: torch.empty(2, 35, dtype=torch.int32), 3: torch.empty(2, 38, dtype=torch.int32)}[form]
        p = packed.panels
        native.C.linear_packed(x, p, b, r, y, space, 0, form)
        bad = [
            (x, p[:, :-1], b, r, y, space, 0, form),
            (x, p[:2], b, r, y, space, 0, form),
            (x, p, b[:36], r, y, space, 0, form),
            (x, p, b, r, y[:1], space, 0, form),
            (x, p, b, r, y, space, 7, form),
            (x, p, b, r, y, space, 0, 4),
            (x, p.float(), b, r, y, space, 0, form),
        ]
        if form:
            bad += [(x, p, b, r, y, None, 0, form), (x, p, b, r, y, space[:1], 0, form)]
        for args in bad:
            with pytest.raises(ValueError):
                native.C.linear_packed(*args)

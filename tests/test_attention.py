"""attention beyond the promises: torch's own, the options one by one, hidden keys, gradients, errors."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

import hexad_kernels
from hexad_kernels import attention
from tests import promises
from tests.cases import build
from tests.cases.attention import CASES


def inputs(*, batch=2, heads=4, kv_heads=2, rows=37, keys=70, dim=24, value_dim=None, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, rows, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, value_dim or dim)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def close(a, b, tolerance=2e-6):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
def test_torchs_attention(options):
    q, k, v = inputs(rows=70)
    ours = {"causal" if name == "is_causal" else name: value for name, value in options.items()}
    assert close(attention(q, k, v, **ours), sdpa(q, k, v, enable_gqa=True, **options))


@pytest.mark.parametrize("shape", [(37, 70), (1, 70), (37, 1), (2, 1, 37, 70), (4, 37, 70), (2, 4, 37, 70)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "add"])
def test_torchs_masks(shape, kind):
    q, k, v = inputs()
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mask = (draw > -1) | (torch.arange(shape[-1]) == 0) if kind == "bool" else draw
    assert close(attention(q, k, v, mask=mask), sdpa(q, k, v, mask, enable_gqa=True))


def test_causal_sits_lower_right_or_upper_left():
    q, k, v = inputs()
    lower = torch.ones(37, 70, dtype=torch.bool).tril(70 - 37)
    assert close(attention(q, k, v, causal=True), sdpa(q, k, v, lower, enable_gqa=True))
    assert close(attention(q, k, v, causal="upper_left"), sdpa(q, k, v, is_causal=True, enable_gqa=True))


@pytest.mark.parametrize("causal", [False, True, "upper_left"])
@pytest.mark.parametrize("window", [1, 9, 65, (3, 5), (-1, 4), (70, -1), (0, 0), 10**30], ids=str)
def test_window(window, causal):
    q, k, v = inputs()
    left, right = (min(window, 99) - 1,) * 2 if isinstance(window, int) else window
    ahead = torch.arange(70) - torch.arange(37)[:, None] - (0 if causal == "upper_left" else 70 - 37)
    mask = torch.ones(37, 70, dtype=torch.bool)
    mask &= (ahead >= -left) if left >= 0 else mask
    mask &= (ahead <= right) if right >= 0 else mask
    mask &= (ahead <= 0) if causal else mask
    assert torch.equal(attention(q, k, v, window=window, causal=causal), attention(q, k, v, mask=mask))


def test_softcap_and_lse():
    q, k, v = inputs(kv_heads=4)
    s = 2.5 * torch.tanh(q.double() @ k.double().mT / math.sqrt(24) / 2.5)
    out, lse = attention(q, k, v, softcap=2.5, return_lse=True)
    assert close(out.double(), s.softmax(-1) @ v.double())
    assert close(lse.double(), torch.logsumexp(s, -1)) and lse.dtype == torch.float32


def test_a_row_that_sees_nothing_is_zero():
    q, k, v = inputs()
    mask = torch.ones(37, 70, dtype=torch.bool)
    mask[5] = False
    for hide in (mask, torch.zeros(37, 70).masked_fill(~mask, -math.inf)):
        out, lse = attention(q, k, v, mask=hide, return_lse=True)
        assert (out[:, :, 5] == 0).all() and (lse[:, :, 5] == -math.inf).all()
        assert lse[:, :, 6].isfinite().all()
    out, lse = attention(q, k[:, :, :9], v[:, :, :9], causal=True, return_lse=True)
    assert (out[:, :, :28] == 0).all() and (lse[:, :, :28] == -math.inf).all() and lse[:, :, 28:].isfinite().all()


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_hidden_keys_contribute_nothing(name, value):
    q, k, v = inputs(rows=70)
    mask = torch.ones(70, dtype=torch.bool)
    mask[3] = False
    spoiled = [t.index_fill(2, torch.tensor([3, 50]), value) for t in (k, v)]
    with hexad_kernels.backend(name):
        plain = attention(q, k, v, mask=mask, causal=True)
        out = attention(q, *spoiled, mask=mask, causal=True)
    assert torch.equal(out[:, :, :50], plain[:, :, :50])
    assert out[:, :, 50:].isnan().all() or math.isinf(value)
    assert not out[:, :, 50:].isfinite().all(-1).any()


def test_a_row_does_not_depend_on_later_keys_nor_on_its_block():
    q, k, v = inputs(rows=150, keys=150, dim=64)
    whole = attention(q, k, v, causal=True)
    for n in (1, 63, 64, 65, 149):
        assert torch.equal(attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], causal=True), whole[:, :, :n])
        assert torch.equal(attention(q[:, :, n:], k, v, causal=True), whole[:, :, n:])
    assert torch.equal(attention(q[:, 2:3], k[:, 1:], v[:, 1:], causal=True), whole[:, 2:3])


def test_a_mask_that_hides_what_causality_hides_gives_the_same_bits():
    q, k, v = inputs(rows=70)
    mask = torch.ones(70, 70, dtype=torch.bool).tril()
    assert torch.equal(attention(q, k, v, mask=mask), attention(q, k, v, causal=True))


@pytest.mark.parametrize("case", [c for c in CASES if torch.float16 in c.dtypes], ids=lambda case: case.name)
def test_float16_has_the_same_bits_on_every_instruction_set(case):
    with hexad_kernels.backend("cpu"):
        promises.same_on_every_isa("attention", build(case, torch.float16))


def test_alibi_is_a_bias():
    q, k, v = inputs()
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0])
    distance = (torch.arange(70) - torch.arange(37)[:, None] - (70 - 37)).abs()
    bias = -slopes[:, None, None] * distance
    assert close(attention(q, k, v, alibi_slopes=slopes), sdpa(q, k, v, bias, enable_gqa=True))
    assert torch.equal(attention(q, k, v, alibi_slopes=slopes), attention(q, k, v, mask=bias))


def test_sinks_are_a_key_without_a_value():
    q, k, v = inputs(kv_heads=4)
    sinks = torch.tensor([0.5, -1.0, 3.0, -math.inf])
    s = torch.cat([q.double() @ k.double().mT / math.sqrt(24), sinks.double()[:, None, None].expand(2, 4, 37, 1)], -1)
    out, lse = attention(q, k, v, sinks=sinks, return_lse=True)
    assert close(out.double(), s.softmax(-1)[..., :-1] @ v.double())
    assert close(lse.double(), torch.logsumexp(s, -1))
    assert torch.equal(out[:, 3], attention(q, k, v)[:, 3])


def test_gradients_of_slopes_and_sinks():
    leaves = [t.requires_grad_() for t in inputs(batch=1, rows=4, keys=5, dim=3, value_dim=2, dtype=torch.float64)]
    slopes, sinks = (torch.randn(4, dtype=torch.float64).requires_grad_() for _ in range(2))

    def f(q, k, v, slopes, sinks):
        return attention(q, k, v, causal=True, alibi_slopes=slopes, sinks=sinks, return_lse=True)

    assert torch.autograd.gradcheck(f, [*leaves, slopes, sinks])


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True, "softcap": 2.0}, {"window": (2, 1)}, {"causal": "upper_left", "scale": 0.2}],
    ids=str,
)
def test_gradients(options):
    leaves = [t.requires_grad_() for t in inputs(batch=1, rows=4, keys=5, dim=3, value_dim=2, dtype=torch.float64)]
    mask = torch.randn(4, 1, 5, dtype=torch.float64)
    mask[:, :, 0] = -math.inf
    mask.requires_grad_()

    def f(q, k, v, mask):
        out, lse = attention(q, k, v, mask=mask, return_lse=True, **options)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(f, [*leaves, mask])


def test_float32_gradients_agree_with_plain_autograd():
    leaves = [t.requires_grad_() for t in inputs()]
    grads = []
    for name in ("cpu", "reference"):
        with hexad_kernels.backend(name):
            out, lse = attention(*leaves, causal=True, return_lse=True)
            grads.append(torch.autograd.grad(out.square().sum() + lse.sum(), leaves))
    for kernel, plain in zip(*grads):
        assert torch.allclose(kernel, plain, rtol=1e-4, atol=1e-5)


def test_compiles_without_graph_breaks():
    q, k, v = inputs()
    compiled = torch.compile(lambda *t: attention(*t, causal=True) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), attention(q, k, v, causal=True) + 1)


def test_head_dimensions_beyond_the_scratch_go_to_the_reference():
    q, k, v = inputs(rows=2, keys=3, dim=4000)
    assert "head dimension over 3840" in hexad_kernels.explain("attention", q, k, v).refusals["cpu"]
    with pytest.warns(UserWarning, match="reference serves"):
        assert close(attention(q, k, v), sdpa(q, k, v, enable_gqa=True))


Z = torch.zeros


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": [1.0]}, TypeError, "q: got list, wants a torch.Tensor"),
        ({"q": Z(2, 37, 24)}, ValueError, "q: got 3 dimensions"),
        ({"q": Z(2, 4, 37, 24, dtype=torch.int64)}, TypeError, "q: got int64"),
        ({"q": Z(2, 5, 37, 24)}, ValueError, "k: has 2 heads, wants a number that divides q's 5"),
        ({"q": Z(2, 4, 37, 0), "k": Z(2, 2, 70, 0)}, ValueError, "q: got head dimension 0"),
        ({"k": Z(2, 2, 70, 16)}, ValueError, "k: got shape (2, 2, 70, 16), wants (2, any, any, 24)"),
        ({"k": Z(3, 2, 70, 24)}, ValueError, "k: got shape (3, 2, 70, 24)"),
        ({"k": Z(2, 2, 70, 24).bfloat16()}, TypeError, "k: got bfloat16, wants q's float32"),
        ({"v": Z(2, 2, 69, 24)}, ValueError, "v: got shape (2, 2, 69, 24), wants (2, 2, 70, any)"),
        ({"v": Z(2, 2, 70, 24, device="meta")}, ValueError, "v: is on meta"),
        ({"mask": Z(36, 70)}, ValueError, "mask: got shape (36, 70), wants one that broadcasts to (2, 4, 37, 70)"),
        ({"mask": Z(1, 2, 4, 37, 70)}, ValueError, "mask: got shape (1, 2, 4, 37, 70)"),
        ({"mask": Z(37, 70, dtype=torch.int32)}, TypeError, "mask: got int32"),
        ({"mask": Z(37, 70, dtype=torch.float64)}, TypeError, "mask: got float64, wants bool, float32 or q's float32"),
        ({"causal": "lower"}, ValueError, "causal: got 'lower', wants one of False, True, 'upper_left'"),
        ({"window": 0}, ValueError, "window: got 0"),
        ({"window": (1, -2)}, ValueError, "window: got (1, -2)"),
        ({"window": (1, 2, 3)}, ValueError, "window: got (1, 2, 3)"),
        ({"softcap": 0.0}, ValueError, "softcap: got 0.0, wants a positive number"),
        ({"softcap": math.nan}, ValueError, "softcap: got nan"),
        ({"scale": math.inf}, ValueError, "scale: got inf, wants a finite number"),
        ({"alibi_slopes": Z(2)}, ValueError, "alibi_slopes: got shape (2,), wants (4) = (Hq,)"),
        ({"alibi_slopes": Z(4).double()}, TypeError, "alibi_slopes: got float64, wants float32"),
        ({"sinks": Z(1, 4)}, ValueError, "sinks: got 2 dimensions"),
        ({"sinks": Z(4, device="meta")}, ValueError, "sinks: is on meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(change, error, text):
    q, k, v = inputs()
    arguments = {"q": q, "k": k, "v": v} | change
    with pytest.raises(error) as caught:
        attention(**arguments)
    assert text in str(caught.value)

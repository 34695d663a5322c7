"""attention_backward beyond the promises: true gradients, autograd's way to it, hidden pairs, few heads, errors."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

import hexad_kernels
from hexad_kernels import attention, attention_backward, attention_varlen
from hexad_kernels.op import OPS
from tests import promises


def inputs(*, batch=2, heads=4, kv_heads=2, rows=150, keys=170, dim=40, value_dim=None, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, rows, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, value_dim or dim)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


def draw(like, seed=1):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like.dtype)


def plain(leaves, grad_out, grad_lse=None, **options):
    """Autograd through the reference."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    with hexad_kernels.backend("reference"):
        out, lse = attention(*leaves, return_lse=True, **options)
    outputs, grads = [out], [grad_out.to(out.dtype)]
    if grad_lse is not None:
        outputs, grads = [out, lse], [*grads, grad_lse.to(lse.dtype)]
    return torch.autograd.grad(outputs, leaves, grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"causal": "upper_left"}, {"causal": True, "window": 70}, {"softcap": 2.0}, {"scale": 0.3}],
    ids=str,
)
def test_close_to_the_true_gradients_as_torch_is(options, dtype):
    """Against float64, at most twice the error of torch's own attention in this dtype (where it has the option)."""
    q, k, v = inputs(dtype=dtype)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    out, lse = attention(q, k, v, return_lse=True, **options)
    grad_out, grad_lse = draw(out), draw(lse)
    exact = plain([t.double() for t in (q, k, v)], grad_out, grad_lse, **options)
    got = torch.autograd.grad((out, lse), (q, k, v), (grad_out, grad_lse))
    base = plain([t.detach().float() for t in (q, k, v)], grad_out, grad_lse, **options)
    for g, b, e in zip(got, base, exact):
        slack = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}[dtype] * e.abs().max()
        assert (g.double() - e).abs().max() <= 2 * (b.double() - e).abs().max() + slack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_no_further_off_than_torchs_backward(causal, dtype):
    leaves = [t.requires_grad_() for t in inputs(kv_heads=4, rows=200, keys=200, dim=64, dtype=dtype)]
    ours, torchs = attention(*leaves, causal=causal), sdpa(*leaves, is_causal=causal)
    grad = draw(ours)
    exact = plain([t.double() for t in leaves], grad, causal=causal)
    found = zip(torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(torchs, leaves, grad), exact)
    for got, base, e in found:
        allowed = 2 * (base.double() - e).abs().max() + promises.EPS[dtype] * e.abs().max()
        assert (got.double() - e).abs().max() <= allowed


def test_autograd_takes_the_native_backward(monkeypatch):
    calls = []
    op = OPS["attention_backward"]
    native = op.native
    monkeypatch.setattr(op, "native", lambda *args: (calls.append(1), native(*args)))
    q, k, v = (t.requires_grad_() for t in inputs())
    attention(q, k, v, causal=True).sum().backward()
    assert calls == [1]
    attention(q.double(), k.double(), v.double()).sum().backward()
    assert calls == [1]


def test_only_what_is_asked_for():
    q, k, v = inputs()
    alone = k.clone().requires_grad_()
    attention(q, alone, v, causal=True).square().sum().backward()
    leaves = [t.requires_grad_() for t in (q, k, v)]
    attention(*leaves, causal=True).square().sum().backward()
    assert torch.equal(alone.grad, k.grad)


def test_a_gradient_of_lse_alone():
    leaves = [t.requires_grad_() for t in inputs()]
    _, lse = attention(*leaves, causal=True, return_lse=True)
    got = torch.autograd.grad(lse.sum(), leaves, allow_unused=True)
    exact = plain([t.double() for t in leaves], torch.zeros(2, 4, 150, 40), torch.ones(2, 4, 150), causal=True)
    for g, e in zip(got, exact):
        assert torch.allclose(g.double(), e, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_mask_come_with_the_others():
    leaves = [*inputs(), torch.randn(4, 150, 170)]
    got = [t.clone().requires_grad_() for t in leaves]
    want = [t.double().requires_grad_() for t in leaves]
    attention(*got[:3], mask=got[3]).square().sum().backward()
    with hexad_kernels.backend("reference"):
        q, k, v, mask = want
        attention(q.float(), k.float(), v.float(), mask=mask.float()).square().sum().backward()
    for g, w in zip(got, want):
        assert torch.allclose(g.grad.double(), w.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["k", "v", "q", "grad_out"])
def test_a_hidden_pair_gives_nothing_whatever_it_holds(where, bad, dtype):
    """Key 100 is hidden from rows before it by causality and from all others by the mask; so is row 100 from keys."""
    q, k, v = inputs(rows=170, dtype=dtype)
    mask = torch.ones(170, 170, dtype=torch.bool)
    mask[:, 100] = False
    mask[100] = False
    out, lse = attention(q, k, v, causal=True, mask=mask, return_lse=True)
    grad = draw(out)
    clean = attention_backward(grad, q, k, v, out, lse, causal=True, mask=mask)
    given = {"grad_out": grad, "q": q, "k": k, "v": v}
    spoilt = {name: t.clone() for name, t in given.items()}
    spoilt[where][:, :, 100] = bad
    for backend in ("cpu", "reference"):
        with hexad_kernels.backend(backend):
            found = attention_backward(out=out, lse=lse, causal=True, mask=mask, **spoilt)
            want = clean if backend == "cpu" else attention_backward(out=out, lse=lse, causal=True, mask=mask, **given)
        for g, w in zip(found, want):
            assert g.isfinite().all()
            assert torch.equal(g, w) if backend == "cpu" else torch.allclose(g, w, rtol=1e-2, atol=1e-2)
        assert not found[0][:, :, 100].any() and not found[1][:, :, 100].any() and not found[2][:, :, 100].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 33}], ids=str)
def test_sharing_a_head_among_threads_changes_no_bit(options, dtype):
    q, k, v = inputs(batch=1, heads=3, kv_heads=1, rows=300, dtype=dtype)
    out, lse = attention(q, k, v, return_lse=True, **options)
    grad = draw(out)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(attention_backward(grad, q, k, v, out, lse, **options))
    finally:
        torch.set_num_threads(threads)
    promises.same_bits(*found, "a head for one thread, for four")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_sequences_get_what_each_gets_alone(dtype):
    starts_q, starts_k = [0, 70, 70, 200, 203], [0, 90, 95, 95, 290]
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, h, 24, generator=g).to(dtype) for n, h in ((203, 4), (290, 2), (290, 2)))
    leaves = [t.requires_grad_() for t in (q, k, v)]
    cu = [torch.tensor(s, dtype=torch.int32) for s in (starts_q, starts_k)]
    out, lse = attention_varlen(*leaves, *cu, causal=True, window=60, return_lse=True)
    grad_out, grad_lse = draw(out), draw(lse)
    got = torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse))
    for a, b, c, d in zip(starts_q, starts_q[1:], starts_k, starts_k[1:]):
        alone = [
            t[x:y].transpose(0, 1)[None].detach().requires_grad_() for t, x, y in ((q, a, b), (k, c, d), (v, c, d))
        ]
        outputs = attention(*alone, causal=True, window=60, return_lse=True)
        grads = grad_out[a:b].transpose(0, 1)[None], grad_lse[:, a:b][None]
        want = torch.autograd.grad(outputs, alone, grads)
        parts = tuple(t[x:y].transpose(0, 1)[None] for t, x, y in zip(got, (a, c, c), (b, d, d)))
        promises.same_bits(parts, want, f"rows {a} to {b}")


def test_expanded_gradients():
    leaves = [t.requires_grad_() for t in inputs()]
    out = attention(*leaves)
    a = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    b = torch.autograd.grad(out, leaves, torch.ones_like(out))
    promises.same_bits(a, b, "ones of stride 0")


def test_the_default_dtype_is_of_no_effect():
    q = torch.randn(1, 1, 3, 8, requires_grad=True)
    torch.set_default_dtype(torch.float64)
    try:
        (grad,) = torch.autograd.grad(hexad_kernels.attention(q, q, q).sum(), q)
    finally:
        torch.set_default_dtype(torch.float32)
    assert grad.dtype == torch.float32


def test_compiles_with_its_gradient():
    leaves = [t.requires_grad_() for t in inputs()]

    def loss(q, k, v):
        return attention(q, k, v, causal=True).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    a = torch.autograd.grad(compiled(*leaves), leaves)
    b = torch.autograd.grad(loss(*leaves), leaves)
    promises.same_bits(a, b, "compiled")


Z = torch.zeros


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"grad_out": Z(2, 4, 150, 41)}, ValueError, "grad_out: got shape (2, 4, 150, 41), wants (2, 4, 150, 40)"),
        ({"grad_out": Z(2, 4, 150, 40).bfloat16()}, TypeError, "grad_out: got bfloat16"),
        ({"out": Z(2, 4, 15, 40)}, ValueError, "out: got shape (2, 4, 15, 40)"),
        ({"lse": Z(2, 4, 149)}, ValueError, "lse: got shape (2, 4, 149), wants (2, 4, 150)"),
        ({"lse": Z(2, 4, 150).bfloat16()}, TypeError, "lse: got bfloat16, wants float32"),
        ({"grad_lse": Z(2, 4)}, ValueError, "grad_lse: got 2 dimensions"),
        ({"k": Z(2, 3, 170, 40), "v": Z(2, 3, 170, 40)}, ValueError, "k: has 3 heads"),
        ({"mask": Z(7, 170)}, ValueError, "mask: got shape (7, 170)"),
        ({"causal": "lower"}, ValueError, "causal: got 'lower'"),
        ({"softcap": -1.0}, ValueError, "softcap: got -1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(change, error, text):
    q, k, v = inputs()
    out = Z(2, 4, 150, 40)
    arguments = {"grad_out": out, "q": q, "k": k, "v": v, "out": out, "lse": Z(2, 4, 150)} | change
    with pytest.raises(error) as caught:
        attention_backward(**arguments)
    assert text in str(caught.value)

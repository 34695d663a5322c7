"""A row's bits are decided by what it sees, on every native backend: hidden keys, tiles, alignment, packed heads."""

import math

import pytest
import torch

import hexad_kernels
from hexad_kernels import attention, attention_varlen

HALVES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def served_by(backend_name):
    if backend_name.startswith("triton"):
        pytest.skip("Triton's kernels have tests of their own")
    with hexad_kernels.backend(backend_name):
        yield


def inputs(dtype, *, heads=2, kv_heads=1, rows=70, keys=140, dim=40, value_dim=None):
    g = torch.Generator().manual_seed(0)
    shapes = (1, heads, rows, dim), (1, kv_heads, keys, dim), (1, kv_heads, keys, value_dim or dim)
    return [torch.randn(s, generator=g).to(dtype) for s in shapes]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_hidden_keys_do_not_matter_and_seen_ones_do(dtype, value):
    q, k, v = inputs(dtype)
    mask = torch.ones(140, dtype=torch.bool)
    mask[3] = False
    plain = attention(q, k, v, mask=mask, causal=True, return_lse=True)
    for at in ([3], [3, 120]):
        spoilt_k, spoilt_v = (t.index_fill(2, torch.tensor(at), value) for t in (k, v))
        for given in ((k, spoilt_v), (spoilt_k, spoilt_v)):
            got = attention(q, *given, mask=mask, causal=True, return_lse=True)
            with hexad_kernels.backend("reference"):
                want = attention(q, *given, mask=mask, causal=True, return_lse=True)
            free = 50 if at == [3, 120] else 70  # rows that do not see key 120
            assert same([t[:, :, :free] for t in got], [t[:, :, :free] for t in plain])
            for g, w in zip(got, want):
                assert torch.equal(g.isnan(), w.isnan()) and torch.equal(g.isinf(), w.isinf())
                assert torch.equal(g[g.isinf()], w[w.isinf()])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dim", [24, 128])
def test_masks_windows_and_later_keys(dtype, dim):
    q, k, v = inputs(dtype, rows=140, dim=dim)
    whole = attention(q, k, v, causal=True, window=50, return_lse=True)
    ahead = torch.arange(140) - torch.arange(140)[:, None]
    mask = (ahead <= 0) & (ahead > -50)
    assert same(attention(q, k, v, mask=mask, return_lse=True), whole)
    assert same(attention(q, k, v, mask=mask.expand(141, 140, 140)[::70][:1], return_lse=True), whole)
    for n in (1, 64, 97):
        first = attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], causal=True, window=50, return_lse=True)
        assert same(first, [t[:, :, :n] for t in whole])
    last = attention(q[:, :, 97:], k, v, causal=True, window=50, return_lse=True)
    assert same(last, [t[:, :, 97:] for t in whole])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_alignment_and_layout(dtype):
    q, k, v = inputs(dtype, value_dim=33)
    whole = attention(q, k, v, causal=True)
    for shift in (1, 8):
        moved = []
        for t in (q, k, v):
            wide = torch.full((1, t.shape[2], t.shape[1], t.shape[3] + 24), math.nan, dtype=dtype)
            moved.append(wide[..., shift : shift + t.shape[3]].transpose(1, 2).copy_(t))
        assert torch.equal(attention(*moved, causal=True), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [5, 140])
def test_heads_that_share_keys(dtype, rows):
    """Few rows are packed with those of the other heads of their key; each has the bits that it has alone."""
    q, k, v = inputs(dtype, heads=6, kv_heads=2, rows=rows)
    options = {"alibi_slopes": torch.arange(6) / 8, "sinks": torch.arange(6) / 2}
    bias = torch.randn(1, 6, rows, 140, generator=torch.Generator().manual_seed(1)).masked_fill_(
        torch.arange(140) % 7 == 0, -math.inf
    )
    whole = attention(q, k, v, causal=True, mask=bias, return_lse=True, **options)
    for h in range(6):
        kv = [t[:, h // 3 : h // 3 + 1] for t in (k, v)]
        one = {name: value[h : h + 1] for name, value in options.items()}
        alone = attention(q[:, h : h + 1], *kv, causal=True, mask=bias[:, h : h + 1], return_lse=True, **one)
        assert same(alone, [t[:, h : h + 1] for t in whole])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_packed_sequences(dtype):
    lengths_q, lengths_k = (5, 0, 130, 33), (5, 3, 90, 7)
    at_q, at_k = (torch.tensor([0, *n]).cumsum(0).to(torch.int32) for n in (lengths_q, lengths_k))
    g = torch.Generator().manual_seed(4)
    shapes = (168, 6, 24), (105, 2, 24), (105, 2, 40)
    q, k, v = (torch.randn(s, generator=g).to(dtype) for s in shapes)
    out, lse = attention_varlen(q, k, v, at_q, at_k, causal=True, return_lse=True)
    for a, b, c, d in zip(at_q, at_q[1:], at_k, at_k[1:]):
        one = (t.transpose(0, 1)[None] for t in (q[a:b], k[c:d], v[c:d]))
        want, want_lse = attention(*one, causal=True, return_lse=True)
        assert torch.equal(out[a:b], want[0].transpose(0, 1)) and torch.equal(lse[:, a:b], want_lse[0])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dims", [(64, 64), (40, 72), (160, 130)], ids=str)
def test_scores_that_grow_and_fall_along_the_keys(dtype, dims):
    """Later keys outweigh or vanish against all before them, by more than a float's exponent holds."""
    q, k, v = inputs(dtype, heads=1, rows=140, keys=700, dim=dims[0], value_dim=dims[1])
    for sign in (1, -1):
        slope = sign * torch.linspace(-1, 1, 700)[:, None] ** 3 * 300
        grown = (k.float() * 0.2 + slope * torch.nn.functional.normalize(q.float().mean((1, 2)), dim=-1)).to(dtype)
        tilted = (q.float() + q.float().mean((1, 2), keepdim=True) * 20).to(dtype)
        for options in ({}, {"causal": True}, {"window": (90, 20)}):
            got = attention(tilted, grown, v, return_lse=True, **options)
            with hexad_kernels.backend("reference"):
                base = attention(tilted, grown, v, return_lse=True, **options)
                exact = attention(*(t.double() for t in (tilted, grown, v)), return_lse=True, **options)
            for g, b, e, ulp in zip(got, base, exact, (torch.finfo(dtype).eps, 2.0**-23)):
                bound = 2 * (b - e).abs().max() + ulp * e.abs().max()
                assert (g - e).abs().max() <= bound


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("option", ["alibi", "far_cap", "near_cap", "bias", "all"])
def test_a_row_alone_has_its_bits_with_every_option(dtype, option):
    """Alone, with the keys it sees only; one key further on it stands in a block of later rows."""
    q, k, v = inputs(dtype, heads=4, kv_heads=2, rows=230, keys=230)
    q = 2 * q  # some scores lie far from the others
    slopes, bias = torch.tensor([0.5, 0.2, 0.05, 0.002]), inputs(dtype, rows=230, dim=230)[0][:, :1]
    options = {
        "alibi": {"alibi_slopes": slopes},
        "far_cap": {"softcap": 3.0},
        "near_cap": {"softcap": 30.0},
        "bias": {"mask": bias},
        "all": {"alibi_slopes": slopes, "softcap": 9.0, "mask": bias},
    }[option]
    k[:, :, 200:] = torch.nan  # hidden from the rows in question
    whole = attention(q, k, v, causal=True, return_lse=True, **options)
    with hexad_kernels.backend("reference"):
        want = attention(q, k, v, causal=True, return_lse=True, **options)
    for i in [0, 1, 15, 16, 31, 63, 64, 65, 126, 127, 128, 140, 191, 199]:
        part = dict(options)
        if "mask" in part:
            part["mask"] = bias[:, :, i : i + 1, : i + 1]
        alone = attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], causal=True, return_lse=True, **part)
        assert same(alone, [t[:, :, i : i + 1] for t in whole])
        torch.testing.assert_close(whole[1][:, :, i], want[1][:, :, i], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", HALVES[:2], ids=str)  # float16's least number is small enough to be added to
def test_a_bias_of_the_least_number_in_all_of_a_row_weighs_its_keys_alike(dtype):
    q, k, v = inputs(dtype)
    mask = torch.full((70, 140), torch.finfo(dtype).min, dtype=dtype)
    mask[3] = 0
    got, plain = attention(q, k, v, mask=mask), attention(q, k, v)
    assert same([got[:, :, 3]], [plain[:, :, 3]])
    mean = v.float().mean(2, keepdim=True).expand(got.shape)
    torch.testing.assert_close(got[:, :, 4:].float(), mean[:, :, 4:], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"window": 300}], ids=str)
def test_a_mask_that_heads_share_is_every_heads_own(backend_name, dtype, options):
    if backend_name == "cuda-emulated":
        pytest.skip("what is shared is the CPU kernel's, and emulation takes minutes over so many rows")
    # Blocks of rows, tiles beyond those that are kept, a batch of masks, a last strip that is not full.
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 1100, 16, generator=g).to(dtype) for heads in (6, 3, 3))
    mask = torch.rand(2, 1, 1100, 1100, generator=g) > 0.5
    got = attention(q, k, v, mask=mask, return_lse=True, **options)
    assert same(got, attention(q, k, v, mask=mask.repeat(1, 6, 1, 1), return_lse=True, **options))
    for i in range(2):
        assert same(
            [t[i] for t in got],
            [t[0] for t in attention(*(t[i : i + 1] for t in (q, k, v)), mask=mask[i], return_lse=True, **options)],
        )

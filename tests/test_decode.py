"""decode beyond the promises: the bits of a causal prefill, any paging, nothing read past a length, errors."""

import math

import pytest
import torch

import hexad_kernels
from hexad_kernels import attention, decode

HEADS, KV_HEADS, DIM = 6, 2, 40


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def inputs(batch=3, room=150, dtype=torch.float32):
    g = torch.Generator().manual_seed(2)
    shapes = (batch, HEADS, room, DIM), (batch, KV_HEADS, room, DIM), (batch, KV_HEADS, room, 24)
    return [torch.randn(s, generator=g).to(dtype) for s in shapes]


def paged(cache, page):
    """The cache cut into pages, stored in another order among pages of NaN, and its block table."""
    batch, heads, room, dim = cache.shape
    each = -(-room // page)
    whole = torch.full((batch, heads, each * page, dim), math.nan, dtype=cache.dtype)
    whole[:, :, :room] = cache
    pages = whole.view(batch, heads, each, page, dim).transpose(1, 2).reshape(batch * each, heads, page, dim)
    order = torch.randperm(2 * batch * each, generator=torch.Generator().manual_seed(3))[: batch * each]
    store = torch.full((2 * batch * each, heads, page, dim), math.nan, dtype=cache.dtype)
    store[order] = pages
    return store, order.to(torch.int32).view(batch, each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 40}, {"softcap": 3.0, "scale": 0.1}], ids=str)
def test_every_row_of_a_prefill(options, dtype):
    q, k, v = inputs(dtype=dtype)
    out, lse = attention(q, k, v, causal=True, return_lse=True, **options)
    for n in (1, 2, 40, 63, 64, 65, 128, 129, 150):
        one, one_lse = decode(q[:, :, n - 1], k, v, int32(n, n, n), return_lse=True, **options)
        assert torch.equal(one, out[:, :, n - 1]) and torch.equal(one_lse, lse[:, :, n - 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(1, 1), (2, 1), (3, 1), (12, 3), (5, 1), (12, 2), (7, 1), (16, 2), (26, 2), (70, 1)])
@pytest.mark.parametrize("dims", [(64, 64), (128, 96), (47, 33), (5, 1), (300, 257), (640, 600)], ids=str)
def test_any_group_and_head_dimension_has_the_prefills_bits(heads, dims, dtype):
    g = torch.Generator().manual_seed(4)
    shapes = (2, heads[0], 131, dims[0]), (2, heads[1], 131, dims[0]), (2, heads[1], 131, dims[1])
    q, k, v = (torch.randn(s, generator=g).to(dtype) for s in shapes)
    for n in (131, 65, 3):
        whole, lses = attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], causal=True, return_lse=True)
        out, lse = decode(q[:, :, n - 1], k, v, int32(n, n), return_lse=True)
        assert torch.equal(out, whole[:, :, -1]) and torch.equal(lse, lses[:, :, -1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [(2, 2), (4, 1), (8, 1)])
def test_values_that_are_not_finite_are_the_prefills(heads, dtype):
    g = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, h, 131, 64, generator=g).to(dtype) for h in (heads[0], heads[1], heads[1]))
    v[0, 0, 3, 1], v[0, 0, 70, 2], v[1, 0, 130, 3] = math.inf, -math.inf, math.nan
    v[1, 0, 5, 4], v[1, 0, 90, 4] = math.inf, -math.inf
    whole = attention(q, k, v, causal=True)[:, :, -1]
    out = decode(q[:, :, -1], k, v, int32(131, 131))
    assert not whole.isfinite().all() and torch.equal(out.isnan(), whole.isnan())
    assert torch.equal(out.nan_to_num(0), whole.nan_to_num(0))


def test_the_comparison_of_bits_sees_another_order_of_summation():
    """The inverse of the tests around it: the same keys summed the other way round are close, not equal."""
    q, k, v = inputs()
    out = attention(q, k, v, causal=True)[:, :, -1]
    turned = decode(q[:, :, -1], k.flip(2), v.flip(2), int32(150, 150, 150))
    assert torch.allclose(turned, out, atol=1e-5) and not torch.equal(turned, out)


@pytest.mark.parametrize("isa", (hexad_kernels.machine()["isa_available"]) or ["none"])
def test_a_row_has_the_prefills_bits_on_every_instruction_set(isa):
    q, k, v = inputs()
    native = hexad_kernels.native.C
    out = attention(q, k, v, causal=True)
    before = native.isa()
    try:
        native.set_isa(isa)
        assert torch.equal(decode(q[:, :, 99], k, v, int32(100, 100, 100)), out[:, :, 99])
    finally:
        native.set_isa(before)


@pytest.mark.parametrize("page", [1, 7, 16, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_paging_does_not_change_bits(page, dtype):
    q, k, v = inputs(dtype=dtype)
    lengths = int32(150, 0, 77)
    (k_pages, table), (v_pages, _) = paged(k, page), paged(v, page)
    for window in (None, 33):
        plain = decode(q[:, :, 0], k, v, lengths, window=window)
        assert torch.equal(decode(q[:, :, 0], k_pages, v_pages, lengths, block_table=table, window=window), plain)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_nothing_is_read_past_a_length_or_before_a_window(name):
    q, k, v = inputs()
    lengths = int32(10, 64, 100)
    page = 16
    (k_pages, table), (v_pages, _) = paged(k, page), paged(v, page)
    with hexad_kernels.backend(name):
        plain = decode(q[:, :, 0], k, v, lengths, window=20)
        for b, n in enumerate(lengths.tolist()):
            for cache in (k, v):
                cache[b, :, n:] = math.nan
                cache[b, :, : max(0, n - 20)] = math.inf
            table[b, -(-n // page) :] = 10**9
            table[b, : max(0, n - 20) // page] = -1
        assert torch.equal(decode(q[:, :, 0], k, v, lengths, window=20), plain)
        assert torch.equal(decode(q[:, :, 0], k_pages, v_pages, lengths, block_table=table, window=20), plain)


def test_the_batch_does_not_matter():
    q, k, v = inputs()
    lengths = int32(150, 3, 77)
    whole = decode(q[:, :, 0], k, v, lengths)
    for b in range(3):
        n = int(lengths[b])
        alone = decode(q[b : b + 1, :, 0], k[b : b + 1, :, :n], v[b : b + 1, :, :n], lengths[b : b + 1])
        assert torch.equal(alone, whole[b : b + 1])


def test_an_empty_sequence_is_zero():
    q, k, v = inputs()
    out, lse = decode(q[:, :, 0], k, v, int32(0, 1, 0), return_lse=True)
    assert (out[::2] == 0).all() and (lse[::2] == -math.inf).all()
    assert torch.equal(out[1], v[1, :, 0].repeat_interleave(HEADS // KV_HEADS, 0))


def int8_cache(cache):
    scale = cache.abs().amax(-1) / 127
    return (cache / scale[..., None]).round().to(torch.int8), scale


def int8_caches(k, v):
    (k, k_scale), (v, v_scale) = int8_cache(k.float()), int8_cache(v.float())
    return (k, v), {"k_scale": k_scale, "v_scale": v_scale}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_an_int8_cache_costs_as_much_as_its_rounding(name, dtype):
    q, k, v = inputs(dtype=dtype)
    lengths = int32(150, 1, 77)
    caches, scales = int8_caches(k, v)
    with hexad_kernels.backend(name):
        out = decode(q[:, :, 0], *caches, lengths, **scales)
        unrounded = decode(q[:, :, 0].float(), k.float(), v.float(), lengths)
        widened = [c * scales[s][..., None] for c, s in zip(caches, scales)]
        same = decode(q[:, :, 0].float(), *widened, lengths)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), same, atol=1e-5, rtol=0 if dtype == torch.float32 else 2**-8)
    assert 1e-4 < (out.float() - unrounded).abs().max() < 0.1


@pytest.mark.parametrize("page", [1, 7, 16, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_paging_an_int8_cache_does_not_change_bits(page, dtype):
    q, k, v = inputs(dtype=dtype)
    lengths = int32(150, 0, 77)
    caches, scales = int8_caches(k, v)
    (k_pages, table), (v_pages, _) = (paged(c.float(), page) for c in caches)
    pages = [c.nan_to_num(-128).to(torch.int8) for c in (k_pages, v_pages)]
    page_scales = {name: paged(s[..., None], page)[0][..., 0] for name, s in scales.items()}
    for window in (None, 33):
        plain = decode(q[:, :, 0], *caches, lengths, window=window, **scales)
        found = decode(q[:, :, 0], *pages, lengths, block_table=table, window=window, **page_scales)
        assert torch.equal(found, plain) and plain.isfinite().all()


def test_no_scale_is_read_past_a_length_or_before_a_window():
    q, k, v = inputs()
    lengths = int32(10, 64, 100)
    caches, scales = int8_caches(k, v)
    plain = decode(q[:, :, 0], *caches, lengths, window=20, **scales)
    for b, n in enumerate(lengths.tolist()):
        for scale in scales.values():
            scale[b, :, n:] = math.nan
            scale[b, :, : max(0, n - 20)] = math.inf
    assert torch.equal(decode(q[:, :, 0], *caches, lengths, window=20, **scales), plain)


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_alibi_is_a_bias_of_a_prefill(name):
    q, k, v = inputs()
    slopes = 2.0 ** -torch.linspace(1, 6, HEADS)
    with hexad_kernels.backend(name):
        for n in (1, 64, 150):
            bias = slopes[:, None, None] * -(n - 1 - torch.arange(n))
            whole, lses = attention(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], mask=bias[None], return_lse=True)
            out, lse = decode(q[:, :, n - 1], k, v, int32(n, n, n), alibi_slopes=slopes, return_lse=True)
            torch.testing.assert_close(out, whole[:, :, 0])
            torch.testing.assert_close(lse, lses[:, :, 0])


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_a_sink_is_a_key_without_a_value(name):
    """As gpt-oss has it: the logit stands beside the scores in the softmax and is dropped afterwards."""
    q, k, v = inputs()
    sinks = torch.tensor([0.0, 3.0, -3.0, 80.0, -math.inf, 1.0])
    lengths = int32(150, 0, 77)
    with hexad_kernels.backend(name):
        out, lse = decode(q[:, :, 0], k, v, lengths, sinks=sinks, return_lse=True)
        plain, plain_lse = decode(q[:, :, 0], k, v, lengths, return_lse=True)
    group = HEADS // KV_HEADS
    for b, n in enumerate(lengths.tolist()):
        for h in range(HEADS):
            scores = k[b, h // group, :n] @ q[b, h, 0] * DIM**-0.5
            weights = torch.cat([scores, sinks[h : h + 1]]).softmax(0)[:-1]
            if n:
                torch.testing.assert_close(out[b, h], weights @ v[b, h // group, :n])
                torch.testing.assert_close(lse[b, h], torch.cat([scores, sinks[h : h + 1]]).logsumexp(0))
    assert torch.equal(lse[1], sinks) and (out[1] == 0).all()
    assert torch.equal(out[:, 4], plain[:, 4]) and torch.equal(lse[:, 4], plain_lse[:, 4])


def test_gpu_kernels_refuse_what_they_do_not_have():
    from hexad_kernels.decode import _cuda_refuses

    q, k, v = inputs()
    caches, scales = int8_caches(k, v)
    none = (None,) * 4
    options = (int32(1, 1, 1), None, -1, None, None)
    assert _cuda_refuses(q[:, :, 0], k, v, *options, *none) is None
    assert _cuda_refuses(q[:, :, 0], *caches, *options, *scales.values(), torch.zeros(HEADS), None) is None
    triton = pytest.importorskip("hexad_kernels.triton.decode")
    assert triton.refuses(q[:, :, 0], *caches, *options, *scales.values(), torch.zeros(HEADS), None) is None
    wide = [t[..., :1].expand(*t.shape[:-1], 257) for t in (q[:, :, 0], k, v)]
    assert "head dimension over 256" in _cuda_refuses(*wide, *options, *none)
    assert "head dimension 257" in triton.refuses(*wide, *options, *none)


def test_compiles_without_graph_breaks():
    q, k, v = inputs()
    lengths = int32(150, 3, 77)
    compiled = torch.compile(lambda *t: decode(*t) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q[:, :, 0], k, v, lengths), decode(q[:, :, 0], k, v, lengths) + 1)
    caches, options = int8_caches(k, v)
    options |= {"alibi_slopes": torch.ones(HEADS), "sinks": torch.zeros(HEADS)}
    compiled = torch.compile(lambda *t: decode(*t, **options) + 1, fullgraph=True, backend="aot_eager")
    arguments = (q[:, :, 0], *caches, lengths)
    assert torch.equal(compiled(*arguments), decode(*arguments, **options) + 1)


T = torch.tensor
INT8 = {c: torch.zeros(3, KV_HEADS, 150, d, dtype=torch.int8) for c, d in (("k_cache", DIM), ("v_cache", 24))}
SCALES = {s: torch.ones(3, KV_HEADS, 150) for s in ("k_scale", "v_scale")}


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"lengths": int32(1, 151, 2)}, ValueError, "lengths: row 1 is 151, wants 0 to 150"),
        ({"lengths": int32(1, 2, -1)}, ValueError, "lengths: row 2 is -1, wants 0 to 150"),
        ({"lengths": int32(1, 2)}, ValueError, "lengths: got shape (2,), wants (3) = (B,)"),
        ({"lengths": T([1, 2, 3])}, TypeError, "lengths: got int64, wants int32"),
        ({"lengths": [1, 2, 3]}, TypeError, "lengths: got list"),
        ({"q": torch.zeros(3, HEADS, 1, DIM)}, ValueError, "q: got 4 dimensions"),
        ({"q": torch.zeros(3, 5, DIM)}, ValueError, "k_cache: has 2 heads, wants a number that divides q's 5"),
        ({"q": torch.zeros(3, HEADS, DIM + 1)}, ValueError, "k_cache: got shape"),
        ({"q": torch.zeros(2, HEADS, DIM), "lengths": int32(1, 2)}, ValueError, "k_cache: has 3 pages, wants one for"),
        ({"v_cache": torch.zeros(3, KV_HEADS, 149, 24)}, ValueError, "v_cache: got shape"),
        ({"v_cache": torch.zeros(3, KV_HEADS, 150, 24).bfloat16()}, TypeError, "v_cache: got bfloat16"),
        ({"block_table": int32(0, 1, 2)}, ValueError, "block_table: got 1 dimensions"),
        ({"block_table": T([[0], [1], [2]])}, TypeError, "block_table: got int64"),
        ({"block_table": int32([0], [3], [2])}, ValueError, "block_table: row 1 has 3 at 0, wants 0 to 2"),
        ({"block_table": int32([0], [1], [-1])}, ValueError, "block_table: row 2 has -1 at 0"),
        ({"block_table": int32([0], [1])}, ValueError, "block_table: got shape (2, 1), wants (3, any)"),
        ({"k_scale": torch.ones(3, KV_HEADS, 150)}, ValueError, "k_scale: given, but k_cache is float32"),
        (INT8 | {"v_scale": torch.ones(3, KV_HEADS, 150)}, ValueError, "k_scale: missing, an int8 cache wants its"),
        (INT8 | SCALES | {"v_scale": torch.ones(3, KV_HEADS, 149)}, ValueError, "v_scale: got shape (3, 2, 149)"),
        (INT8 | SCALES | {"v_scale": SCALES["v_scale"].double()}, TypeError, "v_scale: got float64, wants float32"),
        (INT8 | SCALES | {"v_cache": torch.zeros(3, KV_HEADS, 150, 24)}, TypeError, "v_cache: got float32, wants k_c"),
        ({"q": torch.zeros(3, HEADS, DIM, dtype=torch.int8)}, TypeError, "q: got int8"),
        ({"alibi_slopes": torch.zeros(HEADS - 1)}, ValueError, "alibi_slopes: got shape (5,), wants (6) = (Hq,)"),
        ({"alibi_slopes": torch.zeros(HEADS).bfloat16()}, TypeError, "alibi_slopes: got bfloat16, wants float32"),
        ({"sinks": torch.zeros(1, HEADS)}, ValueError, "sinks: got 2 dimensions"),
        ({"sinks": 0.5}, TypeError, "sinks: got float, wants a torch.Tensor"),
        ({"window": 0}, ValueError, "window: got 0"),
        ({"softcap": -1.0}, ValueError, "softcap: got -1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(name, change, error, text):
    q, k, v = inputs()
    arguments = {"q": q[:, :, 0], "k_cache": k, "v_cache": v, "lengths": int32(5, 150, 9)} | change
    with hexad_kernels.backend(name), pytest.raises(error) as caught:
        decode(**arguments)
    assert text in str(caught.value)

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


def test_compiles_without_graph_breaks():
    q, k, v = inputs()
    lengths = int32(150, 3, 77)
    compiled = torch.compile(lambda *t: decode(*t) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q[:, :, 0], k, v, lengths), decode(q[:, :, 0], k, v, lengths) + 1)


T = torch.tensor


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

"""What a GPU kernel must not let matter, interpreted and emulated: hidden keys, inputs that a step leaves out."""

import math

import pytest
import torch

import hexad_kernels
from hexad_kernels import attention, decode, randn, step
from hexad_kernels.decode import FLOAT8

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def forced(backend_name):
    if backend_name == "cpu":
        pytest.skip("the CPU's kernels have tests of their own")
    with hexad_kernels.backend(backend_name):
        yield


def draw(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


@DTYPES
def test_what_a_hidden_key_holds_does_not_matter(dtype):
    q, k, v = (draw(1, 2, 40, 16, dtype=dtype, seed=i) for i in range(3))
    clean = attention(q, k, v, causal=True, return_lse=True)
    k[:, :, 30:] = math.nan
    v[:, :, 25] = math.inf
    v[:, :, 28:] = math.nan
    dirty = attention(q, k, v, causal=True, return_lse=True)
    assert same([t[:, :, :25] for t in clean], [t[:, :, :25] for t in dirty])
    assert dirty[0][:, :, 25:28].isinf().all() and dirty[0][:, :, 28:].isnan().all()
    assert dirty[1][:, :, :30].isfinite().all() and dirty[1][:, :, 30:].isnan().all()


@DTYPES
def test_a_masked_key_does_not_matter_and_a_row_without_keys_is_zero(dtype):
    q, k, v = (draw(1, 1, 20, 24, dtype=dtype, seed=i) for i in range(3))
    mask = torch.rand(20, 20, generator=torch.Generator().manual_seed(3)) > 0.3
    mask[:, 7] = False
    mask[4] = False
    bias = torch.zeros(20, 20).masked_fill(~mask, -math.inf)
    clean, added = (attention(q, k, v, mask=m, return_lse=True) for m in (mask, bias))
    torch.testing.assert_close(clean, added)
    k[:, :, 7], v[:, :, 7] = math.nan, -math.inf
    assert same(clean, attention(q, k, v, mask=mask, return_lse=True))
    assert same(added, attention(q, k, v, mask=bias, return_lse=True))
    assert (clean[0][:, :, 4] == 0).all() and (clean[1][:, :, 4] == -math.inf).all()


@DTYPES
def test_decode_reads_no_page_beyond_length_or_window(dtype):
    pages, page = 12, 8
    q = draw(3, 4, 16, dtype=dtype)
    k, v = draw(pages, 2, page, 16, dtype=dtype, seed=1), draw(pages, 2, page, 24, dtype=dtype, seed=2)
    table = torch.randperm(pages, generator=torch.Generator().manual_seed(3)).to(torch.int32).view(3, 4)
    lengths = torch.tensor([0, 9, 30], dtype=torch.int32)
    options = {"lengths": lengths, "window": 12, "return_lse": True}
    clean = decode(q, k, v, block_table=table, **options)
    for b, n in enumerate(lengths.tolist()):
        for slot in range(4 * page):
            if not max(0, n - 12) <= slot < n:
                k[table[b, slot // page], :, slot % page] = math.nan
                v[table[b, slot // page], :, slot % page] = math.inf
        table[b, -(-n // page) :] = 2**30
        table[b, : max(0, n - 12) // page] = -(2**30)
    assert same(clean, decode(q, k, v, block_table=table, **options))
    assert (clean[0][0] == 0).all() and (clean[1][0] == -math.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kept", FLOAT8, ids=str)
def test_every_float8_is_read_exactly(kept, dtype):
    """A key of all values, at even and odd addresses, is the output, and its product with a unit vector a score."""
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
    lengths, ones = torch.ones(1, dtype=torch.int32), {name: torch.ones(1, 1, 1) for name in ("k_scale", "v_scale")}
    zero, odd = torch.zeros(1, 1, 1, 16, dtype=kept), torch.zeros(257, dtype=torch.uint8)
    odd[1:] = every.flatten()
    want = every.view(kept).float().flatten()
    for values in (every, odd[1:].view(1, 1, 1, 256)):
        out = decode(torch.zeros(1, 1, 16, dtype=dtype), zero, values.view(kept), lengths, **ones)
        assert torch.equal(out.flatten().nan_to_num(1e4), want.to(dtype).nan_to_num(1e4))
    numbers = torch.where(want.isfinite(), want, 0.0)
    keys, q = numbers.to(kept).view(1, 1, 1, 256), torch.eye(256, dtype=dtype)[None]
    _, lse = decode(q, keys, keys, lengths, scale=1.0, return_lse=True, **ones)
    torch.testing.assert_close(lse.flatten(), numbers, rtol=1e-6, atol=1e-9)


def test_step_leaves_out_what_has_coefficient_zero():
    x, m, h = (draw(2, 37, dtype=torch.float32, seed=i) for i in range(3))
    table = torch.zeros(1, 4, 8)
    table[0, 0, 2] = math.inf
    table[0, 1, 0], table[0, 1, 3] = 0.5, 2.0
    (out,) = step(table, 0, x, torch.full_like(m, math.nan), history=(h, torch.full_like(h, math.inf)))
    assert torch.allclose(out, 0.5 * x + 2 * h)


def test_step_keeps_nan_through_the_clip():
    x = torch.tensor([-3.0, math.nan, 0.25, math.inf])
    table = torch.zeros(1, 4, 8)
    table[0, 0, 0], table[0, 0, 2], table[0, 1, 2] = 1.0, 1.0, 1.0
    (out,) = step(table, 0, x, torch.zeros(4))
    assert torch.equal(out.nan_to_num(9.0), torch.tensor([-1.0, 9.0, 0.25, 1.0]))


def test_noise_made_in_a_step_is_that_of_randn():
    """For rows that begin on a block of four normals and for rows that don't, whatever the index comes in."""
    table = torch.zeros(4, 4, 8)
    table[:, 1, 0], table[:, 1, 7] = 0.5, torch.arange(4) / 3
    seeds = torch.tensor([3, -(2**63), 2**62 + 5])
    for shape in ((3, 4, 4), (3, 5, 7), (3, 1)):
        x = draw(*shape, dtype=torch.float32)
        for index in range(4):
            plain = step(table, index, x, x, noise=randn(seeds, shape[1:], offset=index + 1))
            assert same(plain, step(table, index, x, x, seeds=seeds))
            assert same(plain, step(table, torch.tensor(index, dtype=torch.int32), x, x, seeds=seeds))


def test_an_index_beyond_the_table_reads_nothing_beyond_it():
    table = draw(3, 4, 8, dtype=torch.float32)
    table[:, 1:, 3:] = 0
    x = draw(2, 5, dtype=torch.float32)
    for index, nearest in ((-7, 0), (3, 2), (2**40, 2)):
        assert same(step(table, torch.tensor([index]), x, x), step(table, nearest, x, x))

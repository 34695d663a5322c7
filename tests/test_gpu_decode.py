"""decode on GPU kernels: rows of several splits, the same bits however they are cached, half precision, wide heads."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import decode
from hexad_kernels.decode import most_splits

LENGTHS = torch.tensor([1300, 0, 513, 40], dtype=torch.int32)


@pytest.fixture(autouse=True)
def forced(backend_name):
    if not backend_name.startswith("cuda"):
        pytest.skip("split rows are the CUDA kernel's")
    with hexad_kernels.backend(backend_name):
        yield


def draw(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtype, heads=(4, 2), dim=16, room=1300):
    q = draw(4, heads[0], dim, dtype=dtype)
    return q, *(draw(4, heads[1], room, d, dtype=dtype, seed=i) for i, d in enumerate((dim, dim + 8), 1))


def paged(cache, page, spare):
    """The cache in shuffled pages, with `spare` more in each row's table."""
    batch, heads, room, dim = cache.shape
    each = -(-room // page)
    whole = torch.zeros(batch, heads, each * page, dim, dtype=cache.dtype)
    whole[:, :, :room] = cache
    order = torch.randperm(batch * each, generator=torch.Generator().manual_seed(3))
    store = torch.empty(batch * each, heads, page, dim, dtype=cache.dtype)
    store[order] = whole.view(batch, heads, each, page, dim).transpose(1, 2).flatten(0, 1)
    table = torch.full((batch, each + spare), 2**30, dtype=torch.int32)
    table[:, :each] = order.view(batch, each)
    return store, table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("window", [None, 600])
def test_split_rows_are_right_and_have_one_set_of_bits(dtype, window):
    q, k, v = inputs(dtype)
    out, lse = decode(q, k, v, LENGTHS, window=window, return_lse=True)
    with hexad_kernels.backend("reference"):
        want, want_lse = decode(*(t.double() for t in (q, k, v)), LENGTHS, window=window, return_lse=True)
    eps = torch.finfo(dtype).eps
    assert (out.double() - want).abs().max() < 2 * eps
    assert torch.allclose(lse.double(), want_lse, atol=1e-5)

    (k_pages, table), (v_pages, _) = paged(k, 48, 60), paged(v, 48, 60)
    options = {"window": window, "return_lse": True}
    for b in range(4):
        alone = decode(q[b : b + 1], k[b : b + 1], v[b : b + 1], LENGTHS[b : b + 1], **options)
        other = decode(q[b : b + 1], k_pages, v_pages, LENGTHS[b : b + 1], block_table=table[b : b + 1], **options)
        for found in (alone, other):
            assert torch.equal(found[0][0], out[b]) and torch.equal(found[1][0], lse[b])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_head_of_a_group_has_its_own_bits(dtype):
    q, k, v = inputs(dtype, heads=(11, 1), dim=40, room=70)
    lengths = torch.tensor([70, 3, 64, 17], dtype=torch.int32)
    out = decode(q, k, v, lengths)
    for h in (0, 7, 8, 10):
        assert torch.equal(decode(q[:, h : h + 1], k, v, lengths)[:, 0], out[:, h])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_wide_heads(dtype):
    q, k, v = inputs(dtype, dim=248, room=50)
    lengths = torch.tensor([50, 1, 33, 20], dtype=torch.int32)
    out = decode(q, k, v, lengths)
    with hexad_kernels.backend("reference"):
        want = decode(q.double(), k.double(), v.double(), lengths)
    assert (out.double() - want).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_hidden_slots_scale_does_not_matter(dtype):
    q = draw(1, 4, 32, dtype=dtype)
    g = torch.Generator().manual_seed(5)
    k, v = (torch.randint(-127, 128, (1, 2, 90, 32), generator=g, dtype=torch.int8) for _ in range(2))
    scales = {name: torch.rand(1, 2, 90, generator=g) * 0.02 for name in ("k_scale", "v_scale")}
    lengths = torch.tensor([75], dtype=torch.int32)
    clean = decode(q, k, v, lengths, window=50, **scales)
    for scale in scales.values():
        scale[:, :, 75:] = torch.nan
        scale[:, :, :25] = torch.inf
    assert torch.equal(clean, decode(q, k, v, lengths, window=50, **scales))


def test_splits_of_a_cache():
    assert [most_splits(n, -1) for n in (0, 1, 512, 513, 8192, 8193, 10240, 10241, 131072)] == [
        1, 1, 1, 2, 16, 17, 17, 18, 76,
    ]  # fmt: skip
    assert [most_splits(8192, left) for left in (0, 1, 512, 513, 10**9)] == [1, 2, 2, 3, 16]

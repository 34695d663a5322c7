"""Both caches hold the same bits; a pool of pages is shared, given back, and never over-promised."""

import pytest
import torch

from hexad.cache import KVCache, PagedKVCache

LAYERS, HEADS, CAPACITY, DIM = 2, 3, 12, 8


def rows(generator: torch.Generator, batch: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = torch.randn(2, batch, HEADS, count, DIM, generator=generator)
    return k, v


def fill(cache: KVCache, counts: list[int], seed: int = 0) -> None:
    """Append ``max(counts)`` tokens to each text and keep counts[b] of them."""
    generator = torch.Generator().manual_seed(seed)
    cache.reserve(max(counts))
    for layer in range(LAYERS):
        cache.append(layer, *rows(generator, len(counts), max(counts)))
    cache.advance(torch.tensor(counts, dtype=torch.int32))


def attended(cache: KVCache, layer: int, seed: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    batch = len(cache.lengths)
    q = torch.randn(batch, HEADS, DIM, generator=generator)
    cache.reserve(1)
    cache.append(layer, *rows(generator, batch, 1))
    return cache.attend(layer, q)


@pytest.mark.parametrize("page", [1, 4, 5, 12])
def test_paged_and_contiguous_give_the_same_bits(page: int) -> None:
    plain = KVCache(LAYERS, 3, HEADS, CAPACITY, DIM)
    paged = PagedKVCache(LAYERS, 3, HEADS, CAPACITY, DIM, page=page)
    for cache in (plain, paged):
        fill(cache, [5, 1, 7])
        fill(cache, [2, 3, 1], seed=1)
    for layer in range(LAYERS):
        assert torch.equal(attended(plain, layer), attended(paged, layer))
    assert plain.lengths.tolist() == paged.lengths.tolist() == [7, 4, 8]


def test_layers_do_not_share_memory() -> None:
    cache = KVCache(LAYERS, 2, HEADS, CAPACITY, DIM)
    fill(cache, [4, 4])
    assert not torch.equal(attended(cache, 0), attended(cache, 1))


def test_what_padding_wrote_is_overwritten() -> None:
    """A text of 2 tokens beside one of 6 ends up as if it had been alone."""
    together, alone = (KVCache(LAYERS, batch, HEADS, CAPACITY, DIM) for batch in (2, 1))
    generator = torch.Generator().manual_seed(0)
    k, v = rows(generator, 2, 6)
    together.append(0, k, v)
    together.advance(torch.tensor([2, 6], dtype=torch.int32))
    alone.append(0, k[:1, :, :2].contiguous(), v[:1, :, :2].contiguous())
    alone.advance(2)
    q, (k, v) = torch.randn(1, HEADS, DIM, generator=generator), rows(generator, 1, 1)
    for cache in (together.row(0), alone):
        cache.append(0, k, v)
    assert torch.equal(together.row(0).attend(0, q), alone.attend(0, q))


@pytest.mark.parametrize("kind", [KVCache, PagedKVCache])
def test_a_row_shares_memory_and_clears_alone(kind: type[KVCache]) -> None:
    cache = kind(LAYERS, 2, HEADS, CAPACITY, DIM)
    fill(cache, [5, 7])
    expected = attended(cache, 1)[1]
    cache.row(0).clear()
    assert cache.lengths.tolist() == [0, 7]
    assert torch.equal(attended(cache, 1)[1], expected)


def test_pages_are_taken_when_needed_and_given_back() -> None:
    cache = PagedKVCache(LAYERS, 2, HEADS, CAPACITY, DIM, page=4)
    fill(cache, [5, 2])
    assert [len(own) for own in cache.owned] == [2, 1]
    assert len(cache.free) == cache.pages - 3
    used = [page for own in cache.owned for page in own]
    assert len(set(used)) == 3 and 0 not in used
    cache.clear()
    assert sorted(cache.free) == list(range(1, cache.pages + 1))
    assert not cache.block_table.any()


def test_no_room_is_an_error_that_changes_nothing() -> None:
    cache = KVCache(LAYERS, 1, HEADS, CAPACITY, DIM)
    fill(cache, [10])
    with pytest.raises(ValueError, match="10 \\+ 3 tokens, beyond its capacity of 12"):
        cache.reserve(3)
    small = PagedKVCache(LAYERS, 2, HEADS, CAPACITY, DIM, page=4, pages=3)
    fill(small, [4, 4])
    with pytest.raises(ValueError, match="wants 2 more pages, 1 of 3 are free"):
        small.reserve(1)
    assert [len(own) for own in small.owned] == [1, 1]
    assert len(small.free) == 1

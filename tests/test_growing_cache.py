"""A dynamic cache that grows in place keeps every meaning of the host's: cropping, copies, beam search, selection."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers.cache_utils import DynamicCache  # noqa: E402

from hexad.integrations import growing_cache  # noqa: E402


def new(rows, batch=2):
    return torch.randn(batch, 3, rows, 16), torch.randn(batch, 3, rows, 16)


def append(cache, key, value, index=0):
    grown = growing_cache.append(cache, index, key, value)
    assert grown is not None
    layer = cache.layers[index]
    assert grown[0].keys is layer.keys and grown[1] == layer.keys.shape[2]
    return layer


def test_same_contents_as_the_hosts_update():
    ours, host = DynamicCache(), DynamicCache()
    for index in range(2):
        for rows in (5, 1, 1, 200, 1):
            key, value = new(rows)
            append(ours, key, value, index)
            host.update(key, value, index)
    assert ours.get_seq_length() == host.get_seq_length() == 208
    for a, b in zip(ours.layers, host.layers):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)


def test_a_key_is_written_where_there_is_room():
    cache = DynamicCache()
    layer = append(cache, *new(4))
    first = layer.keys.data_ptr()
    for _ in range(100):
        append(cache, *new(1))
    assert layer.keys.data_ptr() == first and layer.keys.shape[2] == 104


CHANGES = {
    "cropped": lambda cache: cache.crop(-2),
    "reordered": lambda cache: cache.reorder_cache(torch.tensor([1, 1])),
    "selected": lambda cache: cache.batch_select_indices(torch.tensor([1, 0])),
    "emptied": lambda cache: cache.reset(),
    "grown by the host": lambda cache: cache.update(*(t.clone() for t in GROWN), 0),
}
GROWN = new(2)


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_changes_it_leaves_the_buffers_behind(change):
    ours, host = DynamicCache(), DynamicCache()
    key, value = new(6)
    layer = append(ours, key, value)
    host.update(key, value, 0)
    held = layer.keys
    before = held.clone()
    for cache in (ours, host):
        CHANGES[change](cache)
    key, value = new(1)
    append(ours, key, value)
    host.update(key, value, 0)
    assert torch.equal(layer.keys, host.layers[0].keys) and torch.equal(layer.values, host.layers[0].values)
    assert torch.equal(held, before)  # what somebody kept did not change


@pytest.mark.parametrize("how", ["copy", "deepcopy"])
def test_copies_grow_apart(how):
    cache = DynamicCache()
    layer = append(cache, *new(3))
    twin = getattr(copy, how)(layer)
    other = DynamicCache()
    other.layers.append(twin)
    one, two = new(1), new(1)
    append(cache, *one)
    append(other, *two)
    assert torch.equal(layer.keys[:, :, 3:], one[0]) and torch.equal(twin.keys[:, :, 3:], two[0])
    assert torch.equal(layer.keys[:, :, :3], twin.keys[:, :, :3])


def test_other_caches_are_the_hosts():
    key, value = new(1)
    sliding = DynamicCache(config=transformers.MistralConfig(num_hidden_layers=1, sliding_window=4))
    assert growing_cache.append(sliding, 0, key, value) is None
    both = transformers.EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert growing_cache.append(both, 0, key, value) is None
    cache = DynamicCache()
    append(cache, key, value)
    assert growing_cache.append(cache, 0, *new(1, batch=1)) is None  # the host says what is wrong with it

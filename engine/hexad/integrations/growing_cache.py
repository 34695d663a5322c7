"""A dynamic cache of transformers with room for keys to come: a new key is written, not concatenated.

The host's layer (DynamicLayer) keeps its meaning: `keys` and `values` are tensors of exactly the positions seen. Here
they are the front of longer buffers. Whoever replaces them (cropping, beam search, batch selection) leaves the buffers
behind: they are used only while the layer holds the very tensors that were put there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

import hexad_kernels as hk
from hexad_kernels import memory


@dataclass
class Room:
    """Buffers (B, H, capacity, D) of one cache layer, and the views of them that the layer holds."""

    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor


# Beside the layers: a copied or pickled layer has tensors of its own, and no room.
_rooms: WeakKeyDictionary[Any, Room] = WeakKeyDictionary()


@lru_cache(maxsize=16)
def counts(batch: int, n: int) -> Tensor:
    """(B,) int32, each n: the same tensor for all layers of a step."""
    return torch.full((batch,), n, dtype=torch.int32, device="cpu")


def _layer_of(cache: Any, index: int) -> Any:
    """The layer of a host's cache that may grow in place, or None."""
    if type(cache) is not DynamicCache or cache.offloading:
        return None
    held = cache.layers
    while len(held) <= index:  # as the host does at a first update
        if cache.layer_class_to_replicate is not DynamicLayer:
            return None
        held.append(DynamicLayer())
    return held[index] if type(held[index]) is DynamicLayer else None


def _alike(held: Tensor, new: Tensor) -> bool:
    """Whether new rows may stand behind those held: all but their number is the same."""
    (batch, heads, _, dim), (rows, groups, _, size) = held.shape, new.shape
    return (batch, heads, dim, held.dtype) == (rows, groups, size, new.dtype)


def _roomy(layer: Any, key: Tensor, value: Tensor, held: int) -> Room:
    total = held + key.shape[2]
    capacity = total + max(128, total // 2)
    buffers = []
    for old, new in ((layer.keys, key), (layer.values, value)):
        buffer = memory.zeros((*new.shape[:2], capacity, new.shape[3]), new.dtype, new.device)
        if held:
            buffer[:, :, :held] = old
        buffers.append(buffer)
    return Room(buffers[0], buffers[1], layer.keys, layer.values)


def append(cache: Any, index: int, key: Tensor, value: Tensor) -> tuple[Room, int] | None:
    """Add keys and values (B, H, S, D) to layer `index` of a host's cache: its buffers, and the positions now held.

    None: the layer can't grow in place, and the host's own update is to be called.
    """
    layer = _layer_of(cache, index)
    if layer is None:
        return None
    if not layer.is_initialized:
        layer.lazy_initialization(key, value)
    keys, values = layer.keys, layer.values
    held = keys.shape[2] if keys.numel() else 0
    if held and not (_alike(keys, key) and _alike(values, value)):
        return None
    batch, _, rows, _ = key.shape
    total = held + rows
    room = _rooms.get(layer)
    if room is None or room.keys is not keys or room.values is not values or total > room.k.shape[2]:
        room = _rooms[layer] = _roomy(layer, key, value, held)
    hk.append_kv(key, value, room.k, room.v, counts(batch, held))
    layer.keys = room.keys = room.k.narrow(2, 0, total)
    layer.values = room.values = room.v.narrow(2, 0, total)
    return room, total

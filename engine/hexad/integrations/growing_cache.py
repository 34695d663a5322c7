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


def layer_of(cache: Any, index: int, key: Tensor, value: Tensor) -> Any:
    """The layer of a host's cache that may grow in place, or None: then the host's own update is to be called."""
    if type(cache) is not DynamicCache or cache.offloading:
        return None
    while len(cache.layers) <= index:  # as the host does at a first update
        if cache.layer_class_to_replicate is not DynamicLayer:
            return None
        cache.layers.append(DynamicLayer())
    layer = cache.layers[index]
    if type(layer) is not DynamicLayer:
        return None
    seen: Any = (layer.keys, layer.values)
    if layer.is_initialized and seen[0].numel():
        for held, new in zip(seen, (key, value)):
            if held.shape[:2] != new.shape[:2] or held.shape[3] != new.shape[3] or held.dtype != new.dtype:
                return None
    return layer


def _roomy(layer: Any, key: Tensor, value: Tensor, held: int) -> Room:
    total = held + key.shape[2]
    capacity = total + max(128, total // 2)
    buffers = []
    for old, new in ((layer.keys, key), (layer.values, value)):
        buffer = new.new_empty(*new.shape[:2], capacity, new.shape[3])
        if held:
            buffer[:, :, :held] = old
        buffers.append(buffer)
    return Room(buffers[0], buffers[1], layer.keys, layer.values)


def append(layer: Any, key: Tensor, value: Tensor) -> tuple[Room, int]:
    """Add keys and values (B, H, S, D) to a layer that `layer_of` gave; its buffers, and the positions now held."""
    if not layer.is_initialized:
        layer.lazy_initialization(key, value)
    batch, _, rows, _ = key.shape
    held = layer.keys.shape[2] if layer.keys.numel() else 0
    total = held + rows
    room = _rooms.get(layer)
    if room is None or room.keys is not layer.keys or room.values is not layer.values or total > room.k.shape[2]:
        room = _rooms[layer] = _roomy(layer, key, value, held)
    hk.append_kv(key, value, room.k, room.v, counts(batch, held))
    layer.keys = room.keys = room.k[:, :, :total]
    layer.values = room.values = room.v[:, :, :total]
    return room, total

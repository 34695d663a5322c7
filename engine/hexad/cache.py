"""Key/value caches: contiguous, a row of memory per text, or paged, where texts share a pool of pages.

Paging is Kwon et al. 2023 (https://arxiv.org/abs/2309.06180). Both kinds hold the same bits at the same
positions, and ``hexad_kernels.decode`` reads them to the same result.
"""

import copy

import torch
from torch import Tensor

from hexad_kernels import append_kv, decode, memory


class KVCache:
    """Per layer keys and values (batch, heads, capacity, head_dim), and ``lengths`` (batch,) int32 in use.

    A step through a model is ``reserve(n)``, then per layer ``append`` (and ``attend``), then ``advance``.
    """

    block_table: Tensor | None = None

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int32, device=device)
        shape = (layers, *self._storage(batch, heads, head_dim))
        self.keys = memory.zeros(shape, dtype, device)
        self.values = memory.zeros(shape, dtype, device)

    def _storage(self, batch: int, heads: int, head_dim: int) -> tuple[int, ...]:
        return batch, heads, self.capacity, head_dim

    def reserve(self, count: int) -> None:
        """Make room for ``count`` more tokens in every text; ValueError, and nothing changed, if there is none."""
        longest = max(self.lengths.tolist(), default=0)
        if longest + count > self.capacity:
            raise ValueError(f"cache: {longest} + {count} tokens, beyond its capacity of {self.capacity}")

    def append(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write k, v (batch, heads, S, head_dim) behind what each text holds, in reserved room."""
        append_kv(k, v, self.keys[layer], self.values[layer], self.lengths, block_table=self.block_table)

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """Attention of the one token just appended to each text: q (batch, query_heads, head_dim) -> the same."""
        used = self.lengths + 1
        return decode(q, self.keys[layer], self.values[layer], used, block_table=self.block_table)

    def advance(self, counts: Tensor | int) -> None:
        """Count appended tokens, (batch,) or one number for all, as part of the texts."""
        self.lengths += counts

    def row(self, index: int) -> "KVCache":
        """The cache of one text, sharing this one's memory."""
        view = copy.copy(self)
        view.lengths = self.lengths[index : index + 1]
        view.keys, view.values = self.keys[:, index : index + 1], self.values[:, index : index + 1]
        return view

    def clear(self) -> None:
        """Forget the texts."""
        self.advance(-self.lengths)


class PagedKVCache(KVCache):
    """Keys and values (pages, heads, page, head_dim); ``block_table`` (batch, max_pages) int32 says whose.

    A text takes a page when it grows into it, and gives it back when it shrinks. Page 0 is nobody's: unused
    entries of the table point to it. ``pages`` is the size of the pool, by default enough for all texts.
    """

    block_table: Tensor

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        capacity: int,
        head_dim: int,
        *,
        page: int = 16,
        pages: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        most = -(-capacity // page)
        self.page, self.pages = page, batch * most if pages is None else pages
        super().__init__(layers, batch, heads, capacity, head_dim, dtype=dtype, device=device)
        self.block_table = torch.zeros(batch, most, dtype=torch.int32, device=device)
        self.free = list(range(self.pages, 0, -1))
        self.owned: list[list[int]] = [[] for _ in range(batch)]

    def _storage(self, batch: int, heads: int, head_dim: int) -> tuple[int, ...]:
        return self.pages + 1, heads, self.page, head_dim

    def reserve(self, count: int) -> None:
        super().reserve(count)
        wanted = [-(-(length + count) // self.page) for length in self.lengths.tolist()]
        new = sum(max(0, want - len(own)) for want, own in zip(wanted, self.owned))
        if new > len(self.free):
            raise ValueError(f"cache: wants {new} more pages, {len(self.free)} of {self.pages} are free")
        for table, want, own in zip(self.block_table, wanted, self.owned):
            while len(own) < want:
                own.append(self.free.pop())
                table[len(own) - 1] = own[-1]

    def advance(self, counts: Tensor | int) -> None:
        super().advance(counts)
        for table, length, own in zip(self.block_table, self.lengths.tolist(), self.owned):
            while len(own) > -(-length // self.page):
                self.free.append(own.pop())
                table[len(own)] = 0

    def row(self, index: int) -> "PagedKVCache":
        view = copy.copy(self)
        view.lengths, view.owned = self.lengths[index : index + 1], self.owned[index : index + 1]
        view.block_table = self.block_table[index : index + 1]
        return view

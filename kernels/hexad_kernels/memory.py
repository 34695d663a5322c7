"""Memory for large outputs that stays mapped between calls, and large pages for what is read over and over.

The C library returns blocks of 32 MB and more to the system when they are freed, so the next output's pages are
all zeroed and mapped anew, at three to four times the cost of the kernel that fills them. Blocks made here are
kept and used again once no tensor refers to them, and lie on large pages where the system has those.

At most KEEP bytes are held, in use or not (HEXAD_KEEP_MB in the environment, 0: none); beyond that outputs are
allocated as usual. A tensor of this memory behaves as any other, but its storage cannot grow in place.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn import Parameter

from hexad_kernels import check

LARGE = 32 << 20
PAGE = 2 << 20
KEEP = int(os.environ.get("HEXAD_KEEP_MB", "1024")) << 20

_counters: dict[tuple[torch.device, int], Tensor] = {}
_blocks: deque[mmap.mmap] = deque()
_can = hasattr(mmap, "MAP_PRIVATE") and hasattr(mmap, "MAP_ANONYMOUS") and sys.implementation.name == "cpython"


def _references() -> int:
    block = object()
    return sys.getrefcount(block)


_UNUSED = _references()  # of an object that one local variable knows


def _new(size: int) -> mmap.mmap:
    # Private: a forked child gets its own copy, as of all other memory.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _tensor(block: mmap.mmap, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor over a block, which lives as long as it."""
    whole = torch.frombuffer(block, dtype=torch.uint8)
    # Not a view of `whole`: to autograd an output is a tensor of its own.
    return torch.empty(0, dtype=dtype, device="cpu").set_(whole.untyped_storage()).resize_(shape)


def _claim(size: int) -> mmap.mmap | None:
    """A block of `size` bytes that nobody uses, taken off the list: only one thread can get it."""
    for _ in range(len(_blocks)):
        try:
            block = _blocks.popleft()
        except IndexError:
            return None
        if len(block) == size and sys.getrefcount(block) == _UNUSED:
            return block
        _blocks.append(block)
    return None


def release() -> None:
    """Gives the blocks that no tensor refers to back to the system."""
    for _ in range(len(_blocks)):
        try:
            block = _blocks.popleft()
        except IndexError:
            return
        if sys.getrefcount(block) > _UNUSED:
            _blocks.append(block)


def empty_like(value: Tensor) -> Tensor:
    """An empty contiguous tensor of `value`'s shape, dtype and device."""
    size = value.numel() * value.itemsize
    if size < LARGE or not value.is_cpu or type(value) not in (Tensor, Parameter) or not _can:
        return check.empty_like(value)
    size = -(-size // PAGE) * PAGE
    block = _claim(size)
    if block is None:
        if sum(map(len, _blocks)) + size > KEEP:
            release()
            if sum(map(len, _blocks)) + size > KEEP:
                return check.empty_like(value)
        block = _new(size)
    found = _tensor(block, value.shape, value.dtype)
    _blocks.append(block)
    return found


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Zeros, on large pages if they fill any: for what every call reads. Pages are taken as they are first written.

    Translating addresses takes a tenth of the time or more in which one core reads small pages.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < PAGE or torch.device(device).type != "cpu" or type(torch.empty(0)) is not Tensor or not _can:
        return torch.zeros(shape, dtype=dtype, device=device)
    return _tensor(_new(size), shape, dtype)


def on_large_pages(value: Tensor) -> Tensor:
    """`value`, contiguous, copied to such memory if it fills a large page."""
    if value.numel() * value.itemsize < PAGE or not value.is_cpu or type(value) is not Tensor:
        return value.contiguous()
    return zeros(value.shape, value.dtype).copy_(value)


def counters(like: Tensor, count: int) -> Tensor:
    """At least `count` int32 zeros on `like`'s device, for kernels that leave them zero: each stream has its own.

    A graph that is being captured gets zeros of its own, made anew at each replay, since it may run beside the stream.
    """
    stream = 0
    if like.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return like.new_zeros(count, dtype=torch.int32)
        stream = torch.cuda.current_stream(like.device).cuda_stream
    found = _counters.get((like.device, stream))
    if found is None or len(found) < count:
        found = _counters[like.device, stream] = like.new_zeros(max(count, 1024), dtype=torch.int32)
    return found

"""Tensors on guard pages: a kernel's access beyond one becomes an error that names it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from tests.cuda_emulator import build


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(build("_C")))
    library.cuda_emulator_allocate.argtypes = (ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)
    library.cuda_emulator_allocate.restype = ctypes.c_void_p
    library.cuda_emulator_free.argtypes = (ctypes.c_void_p,)
    return library


@contextmanager
def guarded(at_start: bool) -> Iterator[Callable[[Tensor, str], Tensor]]:
    """Yields a function that copies a tensor to pages of its own, against the unmapped page after them (or before).

    The copies must not outlive the block.
    """
    library, made = _library(), []

    def place(t: Tensor, name: str) -> Tensor:
        size = t.numel() * t.element_size()
        if not size:
            return t
        data = library.cuda_emulator_allocate(size, at_start, name.encode())
        assert data, "no memory for guard pages"
        made.append(data)
        raw = torch.frombuffer((ctypes.c_char * size).from_address(data), dtype=torch.uint8)
        return raw.view(t.dtype).view(t.shape).copy_(t)

    try:
        yield place
    finally:
        for data in made:
            library.cuda_emulator_free(data)

"""Reads past an input, or before it, end the process: each input of a call lies against a page without access.

python -m tests.guard_pages attention decode     runs the small cases of these ops interpreted
python -m tests.guard_pages --planted            reads one element too far, and must not survive it
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

import hexad_kernels
from tests import interpreter, promises
from tests.cases import build, cases

LIBC = ctypes.CDLL(None, use_errno=True)
kept: list[mmap.mmap] = []


def guarded(t: Tensor, *, end: bool) -> Tensor:
    """A contiguous copy whose last byte (end) or first byte is next to a page that can't be read."""
    size = t.numel() * t.element_size()
    page = mmap.PAGESIZE
    room = -(-max(size, 1) // page) * page
    memory = mmap.mmap(-1, room + page)
    kept.append(memory)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if LIBC.mprotect(ctypes.c_void_p(base + room if end else base), page, 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    begin = base + room - size if end else base + page
    if size == 0:
        return t
    raw = torch.frombuffer((ctypes.c_char * size).from_address(begin), dtype=torch.uint8)
    return raw.view(t.dtype).view(t.shape).copy_(t)


def planted() -> None:
    import triton
    import triton.language as tl

    @triton.jit
    def copy_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr):
        at = tl.arange(0, BLOCK)
        tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < count + 1, other=0.0))

    x, out = guarded(torch.ones(100), end=True), torch.empty(128)
    copy_kernel[(1,)](x, out, 99, 128)
    print("in bounds", flush=True)
    copy_kernel[(1,)](x, out, 100, 128)


def main(names: list[str]) -> None:
    for name in names:
        for case in cases()[name]:
            if not case.small:
                continue
            for dtype, end in ((torch.float32, True), (torch.bfloat16, False)):
                call = build(case, dtype).map(lambda t, end=end: guarded(t, end=end))
                with hexad_kernels.backend("triton-interpreted"):
                    promises.invoke(name, call)
                print(f"{name} {case.name} {dtype}", flush=True)


if __name__ == "__main__":
    interpreter.quicken()
    planted() if sys.argv[1:] == ["--planted"] else main(sys.argv[1:])

"""Which GPU backend is asked first: measured per chip, op and class of call, and kept in selection.json.

    default      the order where nothing was measured: CUDA C++ first, whose kernels are written for the chip
    unmeasured   op -> the order instead, for an op whose CUDA kernel is the plain one and whose Triton kernel is tuned
    measured     chip -> op -> class of call -> the backend that was faster there

`python bench/gpu.py --tune` writes `measured` anew for the chip it runs on. An order is where the search for a kernel
begins: a backend that refuses a call is passed over, whatever the table says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TABLE = Path(__file__).with_name("selection.json")
CACHED, SMALL = 32 << 20, 1 << 20  # bytes: what an L2 cache holds, and what takes a launch's time


def read(path: Path = TABLE) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


_table = read()


def tensors(args: Iterable[Any]) -> Iterable[Tensor]:
    for a in args:
        if isinstance(a, Tensor):
            yield a
        elif isinstance(a, (list, tuple)):
            yield from (b for b in a if isinstance(b, Tensor))


def call_class(args: Iterable[Any]) -> str:
    """What a measurement speaks for: the main dtype, the last dimension where it is a head's, and how large it is."""
    found = list(tensors(args))
    floats = [t for t in found if t.is_floating_point()] or found
    if not floats:
        return "none"
    main = max(floats, key=Tensor.numel)
    size = sum(t.numel() * t.itemsize for t in found)
    scale = "small" if size < SMALL else "cached" if size < CACHED else "large"
    head = f"/{main.shape[-1]}" if main.ndim >= 3 and main.shape[-1] in (64, 128, 256) else ""
    return f"{str(main.dtype).removeprefix('torch.')}{head}/{scale}"


@cache
def chip(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def order(name: str, args: tuple[Any, ...]) -> tuple[str, ...]:
    """The GPU backends for a call of op `name`, the first to ask first."""
    usual: tuple[str, ...] = tuple(_table["unmeasured"].get(name, _table["default"]))
    if not _table["measured"]:
        return usual
    where = next((t.device for t in tensors(args) if t.is_cuda), None)
    if where is None:
        return usual
    measured = _table["measured"].get(chip(where.index or 0), {}).get(name)
    first = measured and measured.get(call_class(args))
    return usual if first is None else (first, *(b for b in usual if b != first))

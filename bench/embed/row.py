"""A row of the table: two ways to the same result, what they must agree on, and the least that the work takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from bench.roofline import Roofline, Roofs


@dataclass
class Row:
    """host and ours compute the same, `check` compares their results: (what it found, whether that is allowed).

    bytes, flops   the least that one call must read of weights and compute, for the roof
    """

    name: str
    target: float
    host: Callable[[], Any]
    ours: Callable[[], Any]
    check: Callable[[Any, Any], tuple[str, bool]]
    bytes: float = 0.0
    flops: float = 0.0
    dtype: torch.dtype = torch.float32


def twin(model: Any) -> Any:
    """A copy of a model's modules that shares its parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in shared})


def weights(model: nn.Module, *without: nn.Module) -> int:
    """Numbers in the parameters of a model, but for those of some parts (embeddings are looked up, not read)."""
    left = {id(p) for part in without for p in part.parameters()}
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values() if id(p) not in left)


def near(bound: float) -> Callable[[torch.Tensor, torch.Tensor], tuple[str, bool]]:
    """The largest difference, relative to the largest value where that exceeds 1."""

    def check(host: torch.Tensor, ours: torch.Tensor) -> tuple[str, bool]:
        off = float((host.double() - ours.double()).abs().max() / max(1.0, float(host.abs().max())))
        return f"{off:.1e} <= {bound:.0e}", off <= bound

    return check


def run(row: Row, seconds: float) -> dict[str, Any]:
    """Correct first, then host, ours and the roofs in turns."""
    text, good = row.check(row.host(), row.ours())
    roofline = Roofline()
    calls = [row.host, row.ours, *roofline.calls()]
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 25):
        for call, found in zip(calls, times):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    host, ours, *limits = map(median, times)
    roofs = roofline.roofs(limits)
    least = floor(row, roofs)
    return {
        "row": row.name, "target": row.target, "host": host, "ours": ours, "ratio": host / ours, "check": text,
        "good": good, "roof": least / ours if least else None, "host_roof": least / host if least else None,
        "rounds": len(times[0]), "roofs": roofs.as_dict(),
    }  # fmt: skip


def floor(row: Row, roofs: Roofs) -> float:
    """Seconds that the work takes at least on this machine."""
    return max(row.bytes / roofs.read / 1e9, row.flops / roofs.flops(row.dtype) / 1e9)

"""Times CUDA against Triton on every case that both take, and writes who was faster to the selection table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tests.cases import Call, build, cases

import hexad_kernels as hk
from bench.gpu_device import Device
from hexad_kernels import selection

BACKENDS = ("cuda", "triton")


def candidates() -> Iterable[tuple[str, Call]]:
    """A call per op, class of call and dtype: the bench cases and the plain ones."""
    for name, found in cases().items():
        for case in found:
            for dtype in case.dtypes:
                yield name, build(case, dtype)


def rivals(name: str, call: Call) -> list[str]:
    flat = hk.explain(name, *call.args, **call.kwargs).arguments
    return [backend for backend in BACKENDS if hk.OPS[name].refusal(backend, flat) is None]


def faster(times: list[dict[str, float]]) -> str:
    """By the geometric mean over a class's calls: no call weighs more for being longer."""
    return min(BACKENDS, key=lambda b: sum(math.log(t[b]) for t in times))


def measure(
    device: Device, until: float, clock: Callable[[], float], calls: Iterable[tuple[str, Call]] | None = None
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """op -> class of call -> the faster backend, and the ops that time did not suffice for."""
    times: dict[tuple[str, str], list[dict[str, float]]] = {}
    late = []
    for name, call in candidates() if calls is None else calls:
        if clock() > until:
            late.append(name)
            continue
        if rivals(name, call) != list(BACKENDS):
            continue
        found = {}
        for backend in BACKENDS:
            with torch.no_grad(), hk.backend(backend):
                found[backend] = device.seconds(
                    lambda call=call, name=name: getattr(hk, name)(*call.args, **call.kwargs), rounds=10, cold=False
                )
        flat = hk.explain(name, *call.args, **call.kwargs).arguments
        times.setdefault((name, selection.call_class(flat)), []).append(found)
    table: dict[str, dict[str, str]] = {}
    for (name, kind), found_times in sorted(times.items()):
        table.setdefault(name, {})[kind] = faster(found_times)
    return table, sorted(set(late))


def write(table: dict[str, dict[str, str]], chip: str, path: Path = selection.TABLE) -> None:
    """The chip's part of the table anew; what was measured on other chips stays."""
    whole: dict[str, Any] = selection.read(path)
    whole["measured"] = dict(sorted((whole["measured"] | {chip: table}).items()))
    path.write_text(json.dumps(whole, indent=2) + "\n")

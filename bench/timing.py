"""Interleaved timing: on a shared machine only a ratio of neighbours in time means anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bench.roofline import Roofline, Roofs


def with_roofs(
    calls: Sequence[Callable[[], Any] | None], megabytes: float, **options: Any
) -> tuple[list[float], Roofs]:
    """`interleaved`, and the machine's limits in the same turns: those of a minute ago are another machine's."""
    roofline = Roofline(min(256, max(64, megabytes)))
    found = interleaved([*calls, *roofline.calls()], **options)
    return found[: len(calls)], roofline.roofs(found[len(calls) :])


def interleaved(calls: Sequence[Callable[[], Any] | None], *, seconds: float = 0.4, rounds: int = 15) -> list[float]:
    """Median seconds of each call, taken in turn: A B C A B C ... (NaN for None)."""
    live = [c for c in calls if c is not None]
    counts = []
    for call in live:
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        counts.append(max(1, int(seconds / rounds / len(live) / once)))
    times: list[list[float]] = [[] for _ in live]
    for _ in range(rounds):
        for slot, (call, count) in enumerate(zip(live, counts)):
            start = time.perf_counter()
            for _ in range(count):
                call()
            times[slot].append((time.perf_counter() - start) / count)
    found = iter(times)
    return [median(next(found)) if c is not None else float("nan") for c in calls]

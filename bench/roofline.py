"""The roofs of this machine, measured in the same run as the kernels that are held against them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch

from hexad_kernels import native

KINDS = ("fma_fp32", "dot_bf16", "read", "copy")  # as the native roofline numbers them
ROUND = 0.004  # seconds of arithmetic at a time


@dataclass(frozen=True)
class Roofs:
    """Arithmetic in GFLOP/s, memory in GB/s (copy counts bytes read plus bytes written)."""

    fma_fp32: float
    dot_bf16: float
    read: float
    copy: float

    def flops(self, dtype: torch.dtype) -> float:
        return self.dot_bf16 if dtype == torch.bfloat16 and self.dot_bf16 else self.fma_fp32

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Roofline:
    """Work at each of the machine's limits, to be taken in turns with what is held against them.

    megabytes   that are read, or copied (half of them read, half written): as many as the other work moves, since a
                cache that holds a part of them is faster than the memory behind it
    """

    def __init__(self, megabytes: float = 256) -> None:
        elements = max(2, int(megabytes * 2**20 / 4))
        self._memory = torch.ones(elements), torch.ones(elements // 2)
        self._sink, self._flops = torch.empty(256), torch.empty(1, dtype=torch.float64)
        self._counts = {"read": elements, "copy": elements // 2}
        self._work = {"read": 4.0 * elements, "copy": 8.0 * (elements // 2)}
        for kind in ("fma_fp32", "dot_bf16"):
            self._counts[kind] = 20_000
            try:
                self._run(kind)
            except NotImplementedError:  # no bfloat16 products here
                del self._counts[kind]
                continue
            start = time.perf_counter()
            self._run(kind)
            self._counts[kind] = int(self._counts[kind] * ROUND / (time.perf_counter() - start)) + 1
            self._run(kind)
            self._work[kind] = float(self._flops)

    def _run(self, kind: str) -> None:
        source, target = self._memory if kind in ("read", "copy") else (None, None)
        native.C.roofline(KINDS.index(kind), self._counts[kind], source, target, self._sink, self._flops)

    def calls(self) -> list[Callable[[], None]]:
        return [partial(self._run, kind) for kind in self._counts]

    def roofs(self, seconds: Sequence[float]) -> Roofs:
        """From the time that each of the calls takes."""
        rates = dict.fromkeys(KINDS, 0.0)
        rates.update((kind, self._work[kind] / t / 1e9) for kind, t in zip(self._counts, seconds))
        return Roofs(**rates)


def measure(megabytes: float = 256, repeats: int = 7) -> Roofs:
    """The limits by themselves, medians of `repeats`."""
    roofline = Roofline(megabytes)
    taken: list[list[float]] = []
    for call in roofline.calls():
        taken.append([])
        for _ in range(repeats + 1):  # the first touches the buffers
            start = time.perf_counter()
            call()
            taken[-1].append(time.perf_counter() - start)
    return roofline.roofs([median(times[1:]) for times in taken])

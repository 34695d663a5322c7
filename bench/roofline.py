"""The roofs of this machine, measured in the same run as the kernels that are held against them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch

from hexad_kernels import native


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


def best_rate(work: Callable[[], float], repeats: int = 7) -> float:
    """Median of work per second; `work` returns how much it did."""
    work()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        done = work()
        rates.append(done / (time.perf_counter() - start))
    return median(rates)


def measure(megabytes: int = 256, repeats: int = 7) -> Roofs:
    c = native.C
    sink = torch.empty(256)
    flops = torch.empty(1, dtype=torch.float64)
    elements = megabytes * 2**20 // 4
    source, target = torch.ones(elements), torch.ones(elements)

    def arithmetic(kind: int) -> float:
        c.roofline(kind, 2_000_000, None, None, sink, flops)
        return float(flops)

    def memory(kind: int) -> float:
        c.roofline(kind, elements, source, target, sink, flops)
        return elements * 4.0 * (2 if kind == 3 else 1)

    try:
        bf16 = best_rate(lambda: arithmetic(1), repeats) / 1e9
    except NotImplementedError:
        bf16 = 0.0
    return Roofs(
        fma_fp32=best_rate(lambda: arithmetic(0), repeats) / 1e9,
        dot_bf16=bf16,
        read=best_rate(lambda: memory(2), repeats) / 1e9,
        copy=best_rate(lambda: memory(3), repeats) / 1e9,
    )

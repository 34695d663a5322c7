"""What the CPU kernels are to reach: data, one row per promise; the report puts the run's figures beside it.

A target names an op, some of its cases and a figure of theirs: "roof", the fraction of the roof that bounds the case;
"vs_eager", "vs_compile", the ratio to torch; "seconds". The worst of its cases counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

FIGURES = {"roof": "roof_fraction", "vs_eager": "vs_eager", "vs_compile": "vs_compile", "seconds": "seconds"}


@dataclass(frozen=True)
class Target:
    work: str
    op: str
    cases: str  # patterns, separated by blanks
    dtype: str
    figure: str
    bound: float

    @property
    def upper(self) -> bool:
        """Whether the bound is an upper one."""
        return self.figure == "seconds"

    def rows(self, found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            r
            for r in found
            if r["op"] == self.op
            and fnmatch(r["dtype"], self.dtype)
            and any(fnmatch(r["case"], pattern) for pattern in self.cases.split())
            and r.get(FIGURES[self.figure]) == r.get(FIGURES[self.figure])  # torch has no such form: NaN
        ]

    def worst(self, found: Iterable[dict[str, Any]]) -> float | None:
        values = [r[FIGURES[self.figure]] for r in self.rows(found) if FIGURES[self.figure] in r]
        return (max(values) if self.upper else min(values)) if values else None

    def met(self, value: float) -> bool:
        return value <= self.bound if self.upper else value >= self.bound

    def show(self, value: float) -> str:
        if self.figure == "roof":
            return f"{100 * value:.0f} %"
        return f"{1e6 * value:.1f} us" if self.figure == "seconds" else f"{value:.2f} x"

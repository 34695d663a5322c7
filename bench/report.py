"""Reads pytest-benchmark's JSON; prints the table and draws the roofline: python -m bench.report FILE.json"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from bench.targets import TARGETS


def cell(value: float | None, form: str = "{:.2f}") -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table(title="each row passed its accuracy check in this run; ratios above 1: hexad is faster")
    for heading in ("op", "case", "dtype"):
        shown.add_column(heading)
    peers = any("vs_peer" in r for r in rows)
    ratios = (
        {"peer": "peer", "x peer": "vs_peer"}
        if peers
        else {"x eager": "vs_eager", "x compile": "vs_compile", "x other": "vs_other"}
    )
    for heading in ("us", "GB/s", "GFLOP/s", "% of roof", *ratios):
        shown.add_column(heading, justify="right")
    for r in rows:
        percent = r.get("roof_fraction")
        shown.add_row(
            r["op"], r["case"], r["dtype"], cell(r["seconds"] * 1e6, "{:.1f}"), cell(r.get("gbs")),
            cell(r.get("gflops")), cell(percent and 100 * percent, "{:.0f}"),
            *(r[key] if key == "peer" else cell(r.get(key)) for key in ratios.values()),
        )  # fmt: skip
    return shown


def verdicts(rows: list[dict[str, Any]]) -> Table:
    """Each target beside the worst of its cases in this run."""
    shown = Table(title="targets; the worst case counts")
    for heading in ("work", "figure", "target", "this run", ""):
        shown.add_column(heading)
    for t in TARGETS:
        value = t.worst(rows)
        if value is not None:
            bound = f"{'<=' if t.upper else '>='} {t.show(t.bound)}"
            shown.add_row(t.work, t.figure, bound, t.show(value), "met" if t.met(value) else "missed")
    return shown


def plot(rows: list[dict[str, Any]], roofs: dict[str, float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 6))
    intensity = [2.0**e for e in range(-6, 13)]
    for peak, name in ((roofs["fma_fp32"], "fp32 fma"), (roofs["dot_bf16"], "bf16 dot")):
        if peak:
            axes.plot(intensity, [min(peak, roofs["copy"] * i) for i in intensity], label=f"{name} {peak:.0f} GFLOP/s")
    for op in sorted({r["op"] for r in rows}):
        points = [
            (r["intensity"], r["gflops"]) for r in rows if r["op"] == op and r.get("gflops") and r.get("intensity")
        ]
        if points:
            axes.scatter(*zip(*points), s=24, label=op)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte (algorithmic)", ylabel="GFLOP/s")
    axes.set_title(f"roofline; copy {roofs['copy']:.1f} GB/s, read {roofs['read']:.1f} GB/s, same run")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=140, bbox_inches="tight")


def main(path: str) -> None:
    found = [b["extra_info"] for b in json.loads(Path(path).read_text())["benchmarks"]]
    console = Console(width=120)
    console.print(table(found))
    if not any("vs_peer" in r for r in found):
        console.print(verdicts(found))
    measured = [r for r in found if "roofs" in r]
    if measured:
        roofs = {k: median(r["roofs"][k] for r in measured) for k in measured[0]["roofs"]}
        console.print("roofs, medians over the cases: " + ", ".join(f"{k} {v:.1f}" for k, v in roofs.items()))
        plot(measured, roofs, Path(path).with_suffix(".png"))
        console.print(f"wrote {path} and {Path(path).with_suffix('.png')}")


if __name__ == "__main__":
    main(sys.argv[1])

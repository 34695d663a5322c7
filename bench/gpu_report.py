"""Runs the rows within a time budget; the table, the JSON and the plots of a run."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.gpu_device import Device
from bench.gpu_rows import Measured, NoKernel, Row

# A row's outcomes; WRONG and FAILED make the whole run fail.
MET, MISSED, WRONG, FAILED = "met", "missed", "wrong result", "failed"
NO_KERNEL, SKIPPED, NOT_MEASURED = "no kernel", "skipped: no time left", "not measured"


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def finite(values: dict[str, float]) -> dict[str, float | None]:
    return {k: number(v) for k, v in values.items()}


def outcome(row: Row, found: Measured, device: Device) -> dict[str, Any]:
    reached = [(t, found.figures.get(t.figure, math.nan)) for t in row.targets]
    if found.excess > 1:
        verdict = WRONG
    elif not device.timed or all(math.isnan(value) for _, value in reached):
        verdict = NOT_MEASURED
    else:
        verdict = MET if all(t.met(value) for t, value in reached if not math.isnan(value)) else MISSED
    return {
        "verdict": verdict,
        "figures": {t.figure: {"value": number(value), "target": t.bound, "upper": t.upper} for t, value in reached},
        "seconds": finite(found.seconds),
        "anchors": finite(found.anchors),
        "error_of_allowed": number(found.excess),
        "note": found.note if device.timed else "",
    }


def run_row(row: Row, device: Device) -> dict[str, Any]:
    """Measures a row. Whatever goes wrong is its outcome, and the next row is not harmed by it."""
    try:
        return outcome(row, row.measure(device), device)
    except NoKernel as error:
        return {"verdict": NO_KERNEL, "note": str(error)}
    except AssertionError as error:  # the promise of accuracy, broken
        return {"verdict": WRONG, "note": str(error).splitlines()[0] if str(error) else "accuracy"}
    except Exception as error:
        return {"verdict": FAILED, "note": f"{type(error).__name__}: {error}".splitlines()[0],
                "traceback": traceback.format_exc()}  # fmt: skip


def run_rows(
    rows: Sequence[Row],
    device: Device,
    *,
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Every row that fits before `until` on the clock."""
    found = []
    for row in rows:
        head = {"work": row.work, "anchor": row.anchor}
        if clock() + row.needs(device.quick) > until:
            found.append(head | {"verdict": SKIPPED})
            continue
        begun = clock()
        result = head | run_row(row, device)
        found.append(result | {"took": clock() - begun})
    return found


def shown(figure: str, value: float | None) -> str:
    if value is None:
        return "-"
    if figure.startswith("of "):
        return f"{100 * value:.0f} %"
    return f"{value:.1f} us" if figure.startswith("us ") else f"{value:.2f} x"


def line(row: dict[str, Any]) -> str:
    parts = [f"{row['work']:38} {row['verdict']:22}"]
    for figure, found in row.get("figures", {}).items():
        relation = "<=" if found["upper"] else ">="
        name = figure.removeprefix("of ").removeprefix("x ").removeprefix("us ")
        parts.append(f"{shown(figure, found['value'])} {name} ({relation} {shown(figure, found['target'])})")
    if row.get("seconds") and row["verdict"] in (MET, MISSED):
        parts.append(", ".join(f"{name} {1e6 * v:.1f} us" for name, v in row["seconds"].items() if v))
    if row.get("note"):
        parts.append(row["note"])
    return "  ".join(parts)


def passed(rows: Sequence[dict[str, Any]]) -> bool:
    return not any(row["verdict"] in (WRONG, FAILED) for row in rows)


def write(out: Path, report: dict[str, Any]) -> list[Path]:
    """The JSON, and a plot of how far each figure is from its target where matplotlib is there."""
    out.mkdir(parents=True, exist_ok=True)
    made = [out / "gpu.json"]
    made[0].write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    bars = []
    for row in report["rows"]:
        for name, found in row.get("figures", {}).items():
            if found["value"]:
                share = found["value"] / found["target"]
                bars.append((f"{row['work']}: {name}", 1 / share if found["upper"] else share))
    if not bars:
        return made
    try:
        import matplotlib
    except ImportError:
        return made
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 0.3 * len(bars) + 1.5))
    labels, values = zip(*reversed(bars))
    axes.barh(labels, values, color=["tab:green" if v >= 1 else "tab:orange" for v in values])
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xlabel="figure / target (1: the target)", title=f"{report['machine']['device']}", xlim=(0, 2.5))
    figure.savefig(out / "gpu.png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return [*made, out / "gpu.png"]

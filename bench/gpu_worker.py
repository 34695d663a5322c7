"""The rows in a process of their own, so that a kernel that crashes or hangs costs its row and no other.

The worker writes a JSON line with the machine, the ceilings and the rows' names, then a line per row. `collect` starts
it, and starts it again behind the row it died in.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CONTEXT_LOST = 3  # the worker's exit status after an error that no later call on the device would survive


def collect(
    command: Callable[[int, float], Sequence[str]],
    path: Path,
    *,
    until: float,
    silence: float = 90.0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head line and all rows, from workers: `command(first, seconds)` writes rows first, first + 1, ... to `path`.

    A worker that writes nothing for `silence` seconds is ended.
    """
    head: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    while not head or (len(rows) < len(head["works"]) and clock() < until):
        path.unlink(missing_ok=True)
        with path.with_suffix(".log").open("w") as log:
            child = subprocess.Popen(list(command(len(rows), until - clock())), stdout=log, stderr=log)
            heard, size = clock(), 0
            while child.poll() is None and clock() - heard < silence:
                time.sleep(0.05)
                now = path.stat().st_size if path.exists() else 0
                if now != size:
                    heard, size = clock(), now
            hung = child.poll() is None
            if hung:
                child.kill()
            status = child.wait()
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        said = (path.with_suffix(".log").read_text().strip().splitlines() or [""])[-1]
        died = f"wrote nothing for {silence:.0f} s" if hung else f"exit status {status}: {said}"
        if not lines:
            raise RuntimeError(f"the measuring process did not start: {died}")
        head = lines[0]
        rows += lines[1:]
        if len(rows) < len(head["works"]) and status != CONTEXT_LOST:
            rows.append({"work": head["works"][len(rows)], "verdict": "failed", "note": died})
    rows += [{"work": work, "verdict": "skipped: no time left"} for work in head["works"][len(rows) :]]
    return head, rows


def lost() -> bool:
    """Whether the device's context went with the last row."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def main(path: str, first: str, seconds: str, *flags: str) -> int:
    until = time.monotonic() + float(seconds)
    from bench import gpu_report, gpu_rows
    from bench.gpu_device import Device, DryDevice, machine

    dry, quick = "dry" in flags, "quick" in flags
    device = DryDevice() if dry else Device(quick=quick)
    device.measure_ceilings()
    rows = [row for row in gpu_rows.table() if row.quick or dry or not quick]
    head = {"machine": machine(device), "ceilings": gpu_report.finite(device.ceilings), "works": [r.work for r in rows]}
    with Path(path).open("a") as out:
        print(json.dumps(head), file=out, flush=True)
        for row in rows[int(first) :]:
            (found,) = gpu_report.run_rows([row], device, until=until)
            print(json.dumps(found), file=out, flush=True)
            if found["verdict"] == gpu_report.FAILED and not dry and lost():
                return CONTEXT_LOST
            gc.collect()
            if not dry:
                import torch

                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

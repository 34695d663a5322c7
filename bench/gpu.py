"""One command for a machine with a GPU: builds, runs the op tests on the device, measures: python bench/gpu.py

Writes out/bench/gpu.json and prints a table: each op's bench cases in bfloat16 and float32, per backend, with the
ratio to torch eager and the fraction of the copy bandwidth measured in the same run. --dry-run does all but what needs
the device: it builds, runs the emulated CUDA tests and prints the table's rows, marked as not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "engine")]
GPU_BACKENDS = ("cuda", "triton")


def run(*command: str) -> bool:
    return subprocess.run([sys.executable, *command], cwd=ROOT).returncode == 0


def device_seconds(call: Callable[[], Any], rounds: int = 30) -> float:
    """Median of the device's own clock, after a warm-up."""
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return median(times)


def copy_bandwidth() -> float:
    """GB/s of a 1 GiB device-to-device copy, bytes read plus bytes written."""
    import torch

    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_seconds(lambda: target.copy_(source)) / 1e9


def has_kernel(name: str, backend: str) -> bool:
    import hexad_kernels

    if backend == "cuda":
        return hexad_kernels.OPS[name].cuda
    return (ROOT / "kernels/hexad_kernels/triton" / f"{name}.py").exists()


def measured(name: str, case: Any, dtype: Any, backend: str, roof: float) -> dict[str, Any]:
    """One row: accurate first, then timed beside torch eager."""
    import torch
    from tests import promises
    from tests.cases import Work, build

    import hexad_kernels
    from bench.eager import eager

    call = build(case, dtype)
    with torch.no_grad(), hexad_kernels.backend(backend):
        promises.accurate(name, call, call.map(lambda t: t.double() if t.is_floating_point() else t))
        mine = device_seconds(lambda: getattr(hexad_kernels, name)(*call.args, **call.kwargs))
    with torch.no_grad():
        plain = eager(name, call.args, call.kwargs)
        theirs = device_seconds(plain) if plain else None
    moved = (case.work or Work(0, 0)).bytes * dtype.itemsize / 4
    return {
        "seconds": mine,
        "roof_fraction": moved / mine / 1e9 / roof,
        "copy_gbs": roof,
        "vs_eager": theirs and theirs / mine,
    }


def table(dry: bool) -> list[dict[str, Any]]:
    from tests.cases import cases

    roof = 0.0 if dry else copy_bandwidth()
    rows = []
    for name, found in cases().items():
        for case in (c for c in found if c.bench or c.bench_only):
            for dtype in case.dtypes:
                for backend in (b for b in GPU_BACKENDS if has_kernel(name, b)):
                    row = {
                        "op": name,
                        "case": case.name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "backend": backend,
                    }
                    rows.append(row if dry else row | measured(name, case, dtype, backend, roof))
    return rows


def line(row: dict[str, Any]) -> str:
    head = f"{row['op']:12} {row['case']:24} {row['dtype']:9} {row['backend']:7}"
    if "seconds" not in row:
        return f"{head} not measured"
    ratio = f"{row['vs_eager']:6.2f} x eager" if row["vs_eager"] else "no eager form"
    return f"{head} {row['seconds'] * 1e6:10.1f} us {100 * row['roof_fraction']:4.0f} % of copy {ratio}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dry-run", action="store_true", help="everything but what needs the device")
    dry = parser.parse_args().dry_run
    import torch

    if not dry and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device; --dry-run does what can be done without one", file=sys.stderr)
        return 2
    if not run("setup.py", "--quiet", "build_ext", "--inplace"):
        return 1
    passed = True
    for backend in ["cuda-emulated"] if dry else GPU_BACKENDS:
        passed &= run("-m", "pytest", "tests/test_promises.py", "--backend", backend)
    os.environ["HEXAD_TEST_DEVICE"] = "cpu" if dry else "cuda"
    rows = table(dry)
    out = ROOT / "out" / "bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps({"dry_run": dry, "tests_passed": passed, "rows": rows}, indent=2))
    for row in rows:
        print(line(row))
    print(f"tests {'passed' if passed else 'FAILED'}; wrote {out / 'gpu.json'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

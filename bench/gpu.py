"""One command for a machine with a GPU and no network: builds, tests on the device, measures: python bench/gpu.py

Prints the target table, each row with its figures, and writes out/bench/gpu.json and, where matplotlib is, gpu.png.
The exit status is 0 if the tests passed and no row failed or was wrong; a target that was missed does not count.

--quick     3 minutes instead of 10: small cases only, no torch.compile, the first rows of the table
--tune      also times CUDA against Triton and rewrites this chip's part of kernels/hexad_kernels/selection.json
--dry-run   what can be done without a GPU: small cases on the emulated and interpreted kernels, and every row at a
            small size on the emulated ones; no time is measured
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "engine")]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:3], os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

if TYPE_CHECKING:
    from bench.gpu_tests import Ran

MINUTES = {True: 3, False: 10}  # by --quick
DRY_MINUTES = 60  # nobody waits for a device: a dry run ends when it is through, on a small machine too


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="python bench/gpu.py [options]"
    )
    for flag, text in (
        ("--quick", "3 minutes instead of 10"),
        ("--tune", "rewrite this chip's part of the selection table"),
        ("--dry-run", "what can be done without a GPU"),
        ("--no-build", "take the library as it is"),
        ("--no-tests", "only measure"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench", help="folder of the JSON and the plot")
    return parser.parse_args(arguments)


def tested(dry: bool, quick: bool, seconds: float) -> list[Ran]:
    """Everything that is a test, in its share of the time."""
    from bench import gpu_tests as tests

    until = time.monotonic() + seconds
    workers = max(1, min(8, (os.cpu_count() or 2) // 2))
    if dry:
        return tests.op_tests(("cuda-emulated", "triton-interpreted"), seconds, small=True, workers=workers)
    found = tests.op_tests(("cuda", "triton"), 0.75 * seconds, small=quick, workers=workers)
    found.append(tests.device_tests(until - time.monotonic()))
    sanitized = None if quick else tests.sanitized(until - time.monotonic())
    return [*found, sanitized] if sanitized else found


def measured(dry: bool, quick: bool, out: Path, until: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from bench import gpu_worker

    lines = out / "rows.jsonl"
    flags = [word for word, on in (("dry", dry), ("quick", quick)) if on]

    def command(first: int, seconds: float) -> list[str]:
        return [sys.executable, "-m", "bench.gpu_worker", str(lines), str(first), str(seconds), *flags]

    out.mkdir(parents=True, exist_ok=True)
    return gpu_worker.collect(command, lines, until=until)


def tuned(until: float) -> dict[str, Any]:
    from bench import gpu_tune
    from bench.gpu_device import Device

    device = Device()
    table, late = gpu_tune.measure(device, until, time.monotonic)
    gpu_tune.write(table, device.chip)
    return {"table": table, "no_time_for": late}


def main(arguments: list[str] | None = None) -> int:
    asked = options(arguments)
    dry, quick = asked.dry_run, asked.quick
    end = time.monotonic() + 60 * (DRY_MINUTES if dry else MINUTES[quick])
    import torch

    from bench import gpu_tests

    if not dry and not torch.cuda.is_available():
        print("gpu.py: torch sees no CUDA device; --dry-run does what can be done without one", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"dry_run": dry, "quick": quick, "build": [], "tests": [], "rows": []}
    ran: list[Ran] = []
    if not asked.no_build:
        chip = None if dry else gpu_tests.chip(torch.cuda.get_device_capability())
        ran += gpu_tests.build(chip, 0.6 * (end - time.monotonic()))
        report["build"] = [r.as_dict() for r in ran]
        if not ran[-1].passed:
            print(f"{ran[-1].name}: {ran[-1].summary}\n{ran[-1].output}", file=sys.stderr)
            return 1
    if dry:
        from tests.cuda_emulator import build

        os.environ["HEXAD_CUDA_EMULATED"] = str(build("_C"))
    else:
        os.environ["HEXAD_TEST_DEVICE"] = "cuda"
    if not asked.no_tests:
        tests = tested(dry, quick, 0.45 * (end - time.monotonic()))
        ran += tests
        report["tests"] = [r.as_dict() for r in tests]
        for r in tests:
            print(f"{r.name:32} {'passed' if r.passed else 'FAILED'} in {r.seconds:5.1f} s: {r.summary}", flush=True)
            if not r.passed:
                print(r.output)

    from bench import gpu_report

    head, report["rows"] = measured(dry, quick, asked.out, end)
    report |= {"machine": head["machine"], "ceilings": head["ceilings"]}
    if asked.tune and not dry:
        report["tuned"] = tuned(end + 120)
    print(f"\n{head['machine']['device']}: " + ", ".join(f"{k} {v}" for k, v in report["ceilings"].items()))
    for row in report["rows"]:
        print(gpu_report.line(row))
    good = all(r.passed for r in ran) and gpu_report.passed(report["rows"])
    report["passed"] = good
    files = gpu_report.write(asked.out, report)
    if dry:
        print("no speed was measured: this was a dry run")
    print(f"{'passed' if good else 'FAILED'}; wrote {', '.join(map(str, files))}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Builds hexad in place for the chip at hand and runs the op tests on it, each op in a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ("compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer")


@dataclass(frozen=True)
class Ran:
    """One command: whether it passed, its last line, and what failed in it."""

    name: str
    passed: bool
    seconds: float
    summary: str
    output: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "output" or not self.passed}


def run(name: str, command: Sequence[str], seconds: float, environment: dict[str, str] | None = None) -> Ran:
    """The command in a process group of its own, killed whole when its time is up."""
    begun = time.monotonic()
    if seconds <= 1:
        return Ran(name, False, 0.0, "not started: no time was left")
    child = subprocess.Popen(
        list(command), cwd=ROOT, env=os.environ | (environment or {}), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, late = child.communicate(timeout=seconds)[0], False
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, late = child.communicate()[0], True
    lines = [line for line in output.splitlines() if line.strip()] or [""]
    summary = f"stopped after {seconds:.0f} s" if late else lines[-1].strip(" =")
    # pytest's 5: nothing was selected, as for an op that has no small case.
    passed = not late and child.returncode in ((0, 5) if "pytest" in command else (0,))
    return Ran(name, passed, time.monotonic() - begun, summary, "\n".join(lines[-60:]))


def pytest(*arguments: str) -> list[str]:
    """Without the plugins that a bare machine lacks, whatever pyproject's options ask for."""
    return [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", "--tb=short", *arguments]


def build(chip: str | None, seconds: float) -> list[Ran]:
    """CMake as setup.py runs it, without setuptools. For a chip only that one, in a folder of its own: a choice made
    here must not stay in the build that `make` keeps. None: that build, as it is configured."""
    where = str(ROOT / "build" / ("gpu" if chip else "native"))
    configure = ["cmake", "-S", str(ROOT), "-B", where, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
    if chip:
        configure += ["-DHEXAD_CUDA=ON", f"-DHEXAD_CUDA_CHIPS={chip}"]
    until, done = time.monotonic() + seconds, []
    for name, command in (
        ("configure", configure),
        ("build", ["cmake", "--build", where]),
        ("install", ["cmake", "--install", where, "--prefix", str(ROOT / "kernels" / "hexad_kernels")]),
    ):
        done.append(run(name, command, until - time.monotonic()))
        if not done[-1].passed:
            break
    return done


def chip(capability: tuple[int, int]) -> str:
    """nvcc's name of a chip; Hopper's and Blackwell's matrix instructions need the "a"."""
    major, minor = capability
    return f"{major}{minor}{'a' if major >= 9 else ''}"


def with_kernels(backend: str) -> list[str]:
    import hexad_kernels

    if backend.startswith("cuda"):
        return [name for name, op in hexad_kernels.OPS.items() if op.cuda]
    return [name for name in hexad_kernels.OPS if (ROOT / f"kernels/hexad_kernels/triton/{name}.py").exists()]


def op_tests(backends: Sequence[str], seconds: float, *, small: bool, workers: int) -> list[Ran]:
    """The promises of every op on each backend that has a kernel of it."""
    until = time.monotonic() + seconds
    extra = ["--small"] if small else []
    jobs = [(backend, op) for backend in backends for op in with_kernels(backend)]

    def one(job: tuple[str, str]) -> Ran:
        backend, op = job
        command = pytest("tests/test_promises.py", "--backend", backend, "--op", op, *extra)
        return run(f"{backend} {op}", command, until - time.monotonic(), {"OMP_NUM_THREADS": "1"})

    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(one, jobs))
    for backend in backends:
        command = pytest("tests/test_gpu_kernels.py", "--backend", backend)
        found.append(run(f"{backend} hidden inputs", command, until - time.monotonic()))
    return found


def device_tests(seconds: float) -> Ran:
    """Side streams, graph capture: what only a device shows."""
    return run("streams and graphs", pytest("tests/test_gpu_streams.py"), seconds)


def sanitized(seconds: float) -> Ran | None:
    """Small cases of every CUDA kernel under compute-sanitizer's memcheck; None where there is no such tool."""
    tool = next((found for found in map(shutil.which, SANITIZERS) if found), None)
    if tool is None:
        return None
    tests = pytest("tests/test_promises.py", "--backend", "cuda", "--small", "-k", "test_writes_exactly_its_output")
    # Without the caching allocator each tensor has bounds of its own.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return run("memcheck", [tool, "--tool", "memcheck", "--error-exitcode", "99", *tests], seconds, environment)

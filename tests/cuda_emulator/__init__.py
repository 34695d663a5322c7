"""Builds the CUDA kernels for the CPU; see cuda_emulator.h."""

import fcntl
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent
BUILD = SOURCE.parents[1] / "build" / "emulated"


def build(target: str) -> Path:
    """The shared library of `target` ("_C" or "planted"), up to date. Test processes take turns."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            configure = ["-S", str(SOURCE), "-B", str(BUILD), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
            _run("cmake", *configure)
        _run("cmake", "--build", str(BUILD), "--target", target)
    return BUILD / {"_C": "_C.so", "planted": "libplanted.so"}[target]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

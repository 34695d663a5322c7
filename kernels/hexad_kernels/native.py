"""The only loader of the compiled module: `C` is it, or None with `missing` saying why.

HEXAD_CUDA_EMULATED names a module to load in its place: the CUDA kernels built to run on CPU tensors,
as tests/cuda_emulator builds it.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

C: Any = None
missing = ""
emulated = bool(os.environ.get("HEXAD_CUDA_EMULATED"))


def _torch_openmp() -> str | None:
    """The libgomp this process has loaded (torch's, under whatever file name), if any."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = sorted(set(re.findall(r"(/\S*libgomp\S*\.so\S*)", maps)))
    beside_torch = [path for path in found if Path(torch.__file__).parent in Path(path).parents]
    return (beside_torch or found or [None])[0]


def _load_emulated(path: str) -> tuple[ModuleType | None, str]:
    spec = spec_from_file_location("_C", path)
    if spec is None or spec.loader is None or not Path(path).exists():
        return None, f"HEXAD_CUDA_EMULATED={path!r} is not a compiled module"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, ""


def _load() -> tuple[ModuleType | None, str]:
    if emulated:
        return _load_emulated(os.environ["HEXAD_CUDA_EMULATED"])
    try:
        _C = import_module("hexad_kernels._C")
    except ImportError as error:
        return None, f"the compiled module is not there ({error})"
    path = _torch_openmp()
    if path:
        _C.bind_openmp(path)
    if not _C.isa():
        return None, f"no kernels for this machine (HEXAD_ISA={os.environ.get('HEXAD_ISA', '')!r})"
    return _C, ""


C, missing = _load()
if C is not None:
    # Torch hands its thread count to OpenMP thread by thread, and this call makes it do so.
    C.on_thread_start(torch.get_num_threads)
    C.plain_types(torch.Tensor, torch.nn.Parameter)


def on_cpu(value: torch.Tensor) -> bool:
    """Whether the CPU's kernels serve `value`, and not CUDA's, which the tests run on CPU tensors too."""
    return value.is_cpu and not emulated


def machine() -> dict[str, Any]:
    """What runs here: instruction set, threads, OpenMP runtime, CUDA, Triton; for `hexad doctor` and bug reports."""
    try:
        import triton

        triton_version: str | None = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "torch": torch.__version__,
        "native": missing or "loaded",
        "isa": C.isa() if C else None,
        "isa_available": C.isa_available().split(",") if C else [],
        "threads": torch.get_num_threads(),
        "openmp": C.openmp_path() if C else None,
        "cuda_build": (C.cuda_missing() or "built") if C else missing,
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "triton": triton_version,
    }


def cmake_prefix() -> Path:
    """The prefix for `find_package(hexad)`: pass it as CMAKE_PREFIX_PATH."""
    return Path(__file__).parent

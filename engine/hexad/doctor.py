"""The doctor: what this machine has, and for each op which backend serves it and why the others do not."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import __version__, checkpoint, registry
from .errors import HexadError
from .options import kernels

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "tokenizers",
    "scikit-learn",
    "transformers",
    "diffusers",
    "kernels",
)


def example_calls() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """A small float32 CPU call of each op: the call that the doctor asks about."""
    x = torch.zeros
    lengths = torch.ones(1, dtype=torch.int32)
    ends = torch.tensor([0, 4], dtype=torch.int32)
    heads, image, cache = x(1, 2, 4, 8), x(1, 4, 4, 4), x(1, 2, 8, 8)
    return {
        "attention": ((heads, heads, heads), {}),
        "attention_varlen": ((x(4, 2, 8), x(4, 2, 8), x(4, 2, 8), ends, ends), {}),
        "merge_attention": ((heads, x(1, 2, 4), heads, x(1, 2, 4)), {}),
        "decode": ((x(1, 2, 8), cache, cache, lengths), {}),
        "append_kv": ((x(1, 2, 1, 8), x(1, 2, 1, 8), cache, cache, lengths), {}),
        "rope": ((heads, x(8, 4), x(8, 4)), {}),
        "coupling": ((image, x(1, 2, 4, 4), x(1, 2, 4, 4)), {}),
        "invconv": ((image, torch.eye(4)), {}),
        "step": ((x(1, 4, 8), 0, image, image), {}),
        "randn": ((torch.zeros(1, dtype=torch.int64), (4,)), {}),
        "norm": ((x(2, 8), torch.ones(8)), {}),
        "sample": ((x(1, 8), torch.zeros(1, dtype=torch.int64)), {}),
        "linear": ((x(2, 8), x(8, 8)), {}),
        "maskedconv": ((image, x(4, 4, 3, 3)), {}),
        "vq": ((x(2, 8), x(16, 8)), {}),
    }


def _rows(title: str, rows: Mapping[str, object]) -> Table:
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple, set, frozenset)) else str(value)
        table.add_row(name, escape(shown))
    return table


def _versions() -> dict[str, str]:
    found = {"hexad": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _checkpoints() -> dict[str, str]:
    states = {}
    for name in registry.MODELS | registry.INSTRUMENTS:
        try:
            tensors, manifest = checkpoint.read(name)
            gates = manifest.get("gates", [])
            kept = f"{sum(gate['passed'] for gate in gates)} of {len(gates)} gates kept"
            states[name] = f"intact, {sum(t.numel() for t in tensors.values()):,} weights, {kept}"
        except HexadError as error:
            states[name] = str(error)
    return states


def _op(name: str) -> str:
    import hexad_kernels

    args, options = example_calls().get(name, ((), {}))
    if not args:
        return f"{name}: the doctor has no example call for it"
    try:
        return str(hexad_kernels.explain(name, *args, **options))
    except (TypeError, ValueError, RuntimeError) as error:
        return f"{name}: cannot be explained ({error})"


def print_report(console: Console) -> None:
    """Print machine, versions, checkpoints and ops. A part that is missing is a line in the report, not a failure."""
    machine: dict[str, object] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
    }
    try:
        hexad_kernels = kernels()
    except HexadError:
        console.print(_rows("machine", machine), _rows("versions", _versions()), _rows("checkpoints", _checkpoints()))
        raise
    console.print(_rows("machine", machine | hexad_kernels.machine()))
    console.print(_rows("versions", _versions()))
    console.print(_rows("checkpoints", _checkpoints()))
    console.print("ops, for a small float32 call on the CPU", style="italic")
    for name in sorted(hexad_kernels.OPS):
        console.print(escape(_op(name)), highlight=False, soft_wrap=True)

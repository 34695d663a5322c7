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
    from hexad_kernels import pack, pack_winograd
    from hexad_kernels.gated_pixelcnn import weights_size

    x = torch.zeros
    lengths = torch.ones(1, dtype=torch.int32)
    ends = torch.tensor([0, 4], dtype=torch.int32)
    places, net = torch.zeros(1, 2, 2, dtype=torch.int64), {"levels": 2, "channels": 4, "layers": 1, "kernel": 3}
    heads, image, cache = x(1, 2, 4, 8), x(1, 4, 4, 4), x(1, 2, 8, 8)
    return {
        "attention": ((heads, heads, heads), {}),
        "attention_backward": ((heads, heads, heads, heads, heads, x(1, 2, 4)), {}),
        "attention_varlen": ((x(4, 2, 8), x(4, 2, 8), x(4, 2, 8), ends, ends), {}),
        "merge_attention": ((heads, x(1, 2, 4), heads, x(1, 2, 4)), {}),
        "decode": ((x(1, 2, 8), cache, cache, lengths), {}),
        "append_kv": ((x(1, 2, 1, 8), x(1, 2, 1, 8), cache, cache, lengths), {}),
        "rope": ((heads, x(8, 4), x(8, 4)), {}),
        "coupling": ((image, x(1, 2, 4, 4), x(1, 2, 4, 4)), {}),
        "coupling_backward": ((image, x(1), image, x(1, 2, 4, 4), x(1, 2, 4, 4)), {}),
        "invconv": ((image, torch.eye(4)), {}),
        "step": ((x(1, 4, 8), 0, image, image), {}),
        "randn": ((torch.zeros(1, dtype=torch.int64), (4,)), {}),
        "norm": ((x(2, 8), torch.ones(8)), {}),
        "sample": ((x(1, 8), torch.zeros(1, dtype=torch.int64)), {}),
        "linear": ((x(2, 8), x(8, 8)), {}),
        "linear_packed": ((x(2, 8), pack(x(8, 8)).panels), {"form": "float32", "rows": 8}),
        "gated_pixelcnn": ((places, x(weights_size(height=2, width=2, **net))), net),
        "maskedconv": ((image, x(4, 4, 3, 3)), {}),
        "vq": ((x(2, 8), x(16, 8)), {}),
        "winograd": ((image, pack_winograd(x(4, 4, 3, 3))), {"outputs": 4}),
    }


def _rows(title: str, rows: Mapping[str, object]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
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


def _backends(found: Mapping[str, Any]) -> dict[str, str]:
    """What each backend has to run on here, from ``hexad_kernels.machine()``."""
    isa = f"{found['isa']} in use, of {', '.join(found['isa_available'])}" if found["isa"] else str(found["native"])
    device = found["cuda_device"] or "no device"
    triton = f"triton {found['triton']}" if found["triton"] else "triton is not installed"
    known = {
        "reference": "plain PyTorch, everywhere",
        "cpu": isa,
        "cuda": f"{found['cuda_build']}; {device}",
        "triton": f"{triton}; {device}",
        "triton-interpreted": f"{triton}; TRITON_INTERPRET={os.environ.get('TRITON_INTERPRET', '')!r}, wants '1'",
        "cuda-emulated": f"CUDA sources on the CPU; HEXAD_CUDA_EMULATED={os.environ.get('HEXAD_CUDA_EMULATED', '')!r}",
    }
    return {name: known[name] for name in kernels().BACKENDS if name in known}


def _explained(name: str) -> tuple[str, dict[str, str]]:
    """(the backend that serves the op's example call, why each of the others does not).

    Where that cannot be told, the reason stands beside every backend.
    """
    import hexad_kernels

    args, options = example_calls().get(name, ((), {}))
    if not args:
        return "", dict.fromkeys(hexad_kernels.BACKENDS, "unknown: the doctor has no example call")
    try:
        answer = hexad_kernels.explain(name, *args, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        return "", dict.fromkeys(hexad_kernels.BACKENDS, f"unknown: {error}")
    return answer.served_by, answer.refusals


def op_table() -> tuple[Table, list[str]]:
    """A row per op, a column per backend: "serves", or the number of a reason in the list that comes with it."""
    import hexad_kernels

    title = "ops: who serves a small float32 call on the CPU, and [why not] the others"
    table = Table(title=escape(title), title_justify="left")
    for column in ("op", *hexad_kernels.BACKENDS):
        table.add_column(column, no_wrap=column == "op")
    reasons: list[str] = []
    for name in sorted(hexad_kernels.OPS):
        server, refusals = _explained(name)
        cells = ["serves" if server == "reference" else "fallback"]
        for backend in hexad_kernels.BACKENDS[1:]:
            reason = refusals.get(backend, "").replace(f"{name} has", "the op has")
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append("serves" if backend == server else escape(f"[{reasons.index(reason) + 1}]") if reason else "")
        table.add_row(name, *cells)
    return table, [f"[{i}] {reason}" for i, reason in enumerate(reasons, 1)]


def print_report(console: Console) -> None:
    """Print machine, backends, versions, checkpoints and ops. What is missing is a line in it, not a failure."""
    machine: dict[str, object] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
    }
    try:
        hexad_kernels = kernels()
    except HexadError:
        console.print(_rows("machine", machine), _rows("versions", _versions()), _rows("checkpoints", _checkpoints()))
        raise
    found = hexad_kernels.machine()
    machine |= {
        "instruction sets": found["isa_available"] or found["native"],
        "threads": found["threads"],
        "openmp": found["openmp"],
        "gpu": found["cuda_device"] or "none",
    }
    console.print(_rows("machine", machine))
    console.print(_rows("backends", _backends(found)))
    console.print(_rows("versions", _versions()))
    console.print(_rows("checkpoints", _checkpoints()))
    table, reasons = op_table()
    console.print(table)
    for reason in reasons:
        console.print(escape(reason), highlight=False, soft_wrap=True)

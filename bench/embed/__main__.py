"""python -m bench.embed [MODEL ...] [--out FILE.json] [--seconds S]: the table, and a verdict per row."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import hexad_kernels
from bench.embed import images, text
from bench.embed.row import run

MODELS = {
    "gpt2": text.gpt2_rows, "llama": text.llama_rows, "bert": text.bert_rows,
    "dit": images.dit_rows, "unet": images.unet_rows, "glow": images.glow_rows,
}  # fmt: skip


def table(found: list[dict[str, Any]]) -> Table:
    shown = Table(title="host alone against host with hexad: same weights, in turns, medians")
    for heading in ("row", "host ms", "hexad ms", "ratio", "target", "", "of the roof: host, hexad", "checked"):
        shown.add_column(heading)
    for r in found:
        share = "-" if r["roof"] is None else f"{r['host_roof']:.2f}, {r['roof']:.2f}"
        shown.add_row(
            r["row"], f"{1e3 * r['host']:.1f}", f"{1e3 * r['ours']:.1f}", f"{r['ratio']:.2f}", f">= {r['target']}",
            verdict(r), share, r["check"],
        )  # fmt: skip
    return shown


def verdict(r: dict[str, Any]) -> str:
    if not r["good"]:
        return "WRONG"
    return "met" if r["ratio"] >= r["target"] else "missed"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.embed")
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("out/bench/embed.json"))
    parser.add_argument("--seconds", type=float, default=6.0, help="timing of each row")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    found = []
    console = Console(width=150)
    for name in args.models or MODELS:
        torch.manual_seed(0)
        for row in MODELS[name]():
            found.append(run(row, args.seconds))
            console.print(f"{row.name}: {found[-1]['ratio']:.2f}, {verdict(found[-1])}")
    console.print(table(found))
    hosts = {name: version(name) for name in ("torch", "transformers", "diffusers", "normflows")}
    machine = {"isa": hexad_kernels.machine()["isa"], "threads": torch.get_num_threads(), "cpu": platform.processor()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"rows": found, "hosts": hosts, "machine": machine}, indent=1))
    console.print(f"wrote {args.out}")
    return 0 if all(r["good"] for r in found) else 1


if __name__ == "__main__":
    sys.exit(main())

"""The demo's page: one HTML file that holds its pictures, needs no network, and reads well in light and dark."""

import base64
import html
import platform
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import torch

from .report import speed, verdict

TEMPLATE = Path(__file__).with_name("demo.html")


def page(results: Mapping[str, dict[str, Any]], files: Mapping[Path, bytes], out: Path) -> str:
    """The whole page, with every picture of ``files`` embedded."""
    where = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    cards = "\n".join(_card(name, result, files, out) for name, result in results.items())
    return Template(TEMPLATE.read_text("utf-8")).substitute(machine=html.escape(where), cards=cards)


def _card(name: str, result: dict[str, Any], files: Mapping[Path, bytes], out: Path) -> str:
    head = f'<p class="family">{html.escape(result["family"])}</p><h2>{name}</h2><p>{html.escape(result["title"])}</p>'
    if "error" in result:
        return f'<article>{head}<p class="bad">{html.escape(result["error"])}</p></article>'
    body = "".join(f"<pre>{html.escape(text)}</pre>" for text in result.get("texts", []))
    if "picture" in result:
        encoded = base64.b64encode(files[out / result["picture"]]).decode()
        body = f'<img alt="samples of {name}" src="data:image/png;base64,{encoded}">'
    return f"<article>{head}{body}<dl>{_figures(result)}</dl></article>"


def _figures(result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    rows = [
        ("kernels", f"{seconds['kernels']:.3f} s", ""),
        ("plain PyTorch", f"{seconds['reference']:.3f} s", ""),
        ("speed", speed(result["ratio"]), ""),
        ("same seed", verdict(result["agreement"]), _mark(result["agreement"]["agrees"])),
        ("weights", f"{result['weights']:,}", ""),
    ]
    if "score" in result:
        rows.append((f"score of {result['score']['of']}", f"{result['score']['bits_per_dim']:.3f} bits/dim", ""))
    for gate in result["gates"]:
        figure = f"{gate['value']:.4g} {gate['unit']} ({gate['relation']} {gate['bound']:.4g})"
        rows.append((gate["name"], figure, _mark(gate["passed"])))
    return "".join(f'<dt>{html.escape(a)}</dt><dd class="{c}">{html.escape(b)}</dd>' for a, b, c in rows)


def _mark(passed: bool) -> str:
    return "good" if passed else "bad"

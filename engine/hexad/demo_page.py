"""The demo's page: one HTML file that holds its pictures, needs no network, and reads well in light and dark."""

import base64
import html
import platform
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import torch

from .report import duration, verdict

RELATIONS = {">=": "\u2265", "<=": "\u2264", "==": "="}
TEMPLATE = Template(r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hexad: six families, one kernel engine</title>
<style>
  :root { color-scheme: light dark; --page: #f6f5f2; --card: #fff; --ink: #1d1d1b; --soft: #6b6963; --line: #e2dfd8;
          --good: #1a7f4b; --bad: #b3261e; --accent: #7a4fd0; }
  @media (prefers-color-scheme: dark) {
    :root { --page: #151517; --card: #1f1f23; --ink: #ececea; --soft: #9d9b95; --line: #34343a;
            --good: #58c98d; --bad: #ff8a80; --accent: #b596ff; }
  }
  * { box-sizing: border-box; }
  body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
  header, main, footer { max-width: 76rem; margin: auto; padding: 1.5rem; }
  header h1 { font-size: 2.6rem; margin: 1rem 0 0; letter-spacing: -.02em; }
  header p, footer p { color: var(--soft); max-width: 46rem; margin: .5rem 0 0; }
  main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr));
         align-items: start; }
  article { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
            padding: 1.4rem; min-width: 0; }
  article p { margin: 0 0 1rem; }
  h2 { margin: 0; font-size: 1.5rem; }
  .family { margin: 0; color: var(--accent); font-size: .8rem; font-weight: 600; letter-spacing: .06em;
            text-transform: uppercase; }
  img { display: block; width: 100%; border: 1px solid var(--line); border-radius: 6px; image-rendering: pixelated; }
  pre { margin: 0 0 .6rem; padding: .9rem; background: var(--page); border-radius: 6px; white-space: pre-wrap;
        overflow-wrap: anywhere; max-height: 16rem; overflow-y: auto; font: 13px/1.55 ui-monospace, monospace; }
  dl { display: grid; grid-template-columns: fit-content(50%) 1fr; gap: .2rem 1rem; margin: 1rem 0 0;
       font-size: .92rem; }
  dt { color: var(--soft); }
  dd { margin: 0; font-variant-numeric: tabular-nums; }
  dd.good::before { content: "\2713  "; color: var(--good); }
  dd.bad::before { content: "\2717  "; }
  .bad { color: var(--bad); }
  mark { color: inherit; background: none; font-weight: 700; border-bottom: 2px solid var(--accent); }
</style>
</head>
<body>
<header>
  <h1>hexad</h1>
  <p>Six families of generative models on one kernel engine. Everything below was generated on this machine through
  the kernels, then once more on the same seed through plain PyTorch: the two are compared, and timed, as they are.</p>
</header>
<main>
$cards
</main>
<footer><p>$machine. The gates are measured on held-out data and stand in each checkpoint's manifest; measure them again
with <code>hexad evaluate</code>.</p></footer>
</body>
</html>
""")


def page(results: Mapping[str, dict[str, Any]], files: Mapping[Path, bytes], out: Path) -> str:
    """The whole page, with every picture of ``files`` embedded."""
    threads = torch.get_num_threads()
    where = f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    cards = "\n".join(_card(name, result, files, out) for name, result in results.items())
    return TEMPLATE.substitute(machine=html.escape(where), cards=cards)


def _card(name: str, result: dict[str, Any], files: Mapping[Path, bytes], out: Path) -> str:
    head = f'<p class="family">{html.escape(result["family"])}</p><h2>{name}</h2><p>{html.escape(result["title"])}</p>'
    if "error" in result:
        return f'<article>{head}<p class="bad">{html.escape(result["error"])}</p></article>'
    texts = result.get("texts", [])
    prompts = result["options"].get("prompts", [""] * len(texts))
    body = "".join(f"<pre>{_marked(text, prompt)}</pre>" for text, prompt in zip(texts, prompts, strict=True))
    if "picture" in result:
        encoded = base64.b64encode(files[out / result["picture"]]).decode()
        body = f'<img alt="samples of {name}" src="data:image/png;base64,{encoded}">'
    return f"<article>{head}{body}<dl>{_figures(result)}</dl></article>"


def _marked(text: str, prompt: str) -> str:
    """The text as HTML; what stands in the place of the prompt's [MASK] is marked."""
    before, blank, after = prompt.partition("[MASK]")
    if not blank:
        return html.escape(text)
    end = len(text) - len(after)
    return f"{html.escape(before)}<mark>{html.escape(text[len(before) : end])}</mark>{html.escape(after)}"


def _figures(result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    rows = [
        ("kernels", duration(seconds["kernels"]), ""),
        ("plain PyTorch", duration(seconds["reference"]), ""),
        ("speed-up", f"{result['ratio']:.2f}x", ""),
        ("same seed, both ways", verdict(result["agreement"]), _mark(result["agreement"]["agrees"])),
        ("weights", f"{result['weights']:,}", ""),
    ]
    if "score" in result:
        rows.append((f"score of {result['score']['of']}", f"{result['score']['bits_per_dim']:.3f} bits/dim", ""))
    for gate in result["gates"]:
        relation = RELATIONS.get(gate["relation"], gate["relation"])
        figure = f"{gate['value']:.4g} {gate['unit']} ({relation} {gate['bound']:.4g})".replace("  ", " ")
        rows.append((gate["name"], figure, _mark(gate["passed"])))
    return "".join(f'<dt>{html.escape(a)}</dt><dd class="{c}">{html.escape(b)}</dd>' for a, b, c in rows)


def _mark(passed: bool) -> str:
    return "good" if passed else "bad"

"""The demo: every family generates through the kernels, and plain PyTorch checks each on the same seed."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from torch import Tensor, nn

from . import data, registry
from .demo_page import page
from .errors import HexadError
from .files import atomic_write
from .images import encode_png, grid
from .registry import Entry, Task
from .report import bars, demo_table

Samples = Tensor | list[str]
SEED = 0
IMAGES = 40
SCORED = 64
TOLERANCE = 1e-3
# Models whose samples are drawn from a discrete distribution: these agree exactly, or say where they part.
DISCRETE = frozenset({"pixelcnn", "gpt", "bert"})
BLANKS = (
    "The [MASK] statement is used to test a condition.",
    "A function call returns a [MASK], possibly None.",
    "The if [MASK] is used for conditional execution.",
)
PROMPT = "The with statement"


def run(out: Path, console: Console) -> bool:
    """Run every model and write page, pictures, texts and demo.json to ``out``; False if one failed its check.

    Everything is written at the end, all of it or none.
    """
    results: dict[str, dict[str, Any]] = {}
    files: dict[Path, bytes] = {}
    with bars() as progress:
        whole = progress.add_task("demo", total=len(registry.MODELS), note="")
        for entry in registry.MODELS.values():
            try:
                results[entry.name] = _model(entry, out, files, progress)
            except (HexadError, ValueError, RuntimeError) as error:
                results[entry.name] = {"family": entry.family, "title": entry.title, "error": str(error)}
            progress.advance(whole)
    files[out / "demo.json"] = (json.dumps(results, indent=2) + "\n").encode()
    files[out / "index.html"] = page(results, files, out).encode()
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(files)
    console.print(demo_table(results))
    console.print(f"wrote {escape(str(out / 'index.html'))}", highlight=False)
    return all("error" not in result and result["agreement"]["agrees"] for result in results.values())


def _model(entry: Entry, out: Path, files: dict[Path, bytes], progress: Progress) -> dict[str, Any]:
    import hexad_kernels

    bar = progress.add_task(f"  {entry.name}", total=None, note="loading")
    task = entry.load_task()
    model, manifest = registry.load_with_manifest(entry.name)
    draw, options = _plan(entry, task, model)

    def show(done: int, total: int) -> None:
        progress.update(bar, completed=done, total=total)

    progress.update(bar, note="kernels")
    samples, kernels = _timed(draw, show)
    progress.update(bar, note="plain PyTorch")
    with hexad_kernels.backend("reference"):
        expected, reference = _timed(draw, show)
    agreement = compare(samples, expected, exact=entry.name in DISCRETE)
    progress.update(bar, note="" if agreement["agrees"] else "DIFFER", completed=1, total=1)
    result = {
        "family": entry.family,
        "title": entry.title,
        "options": options,
        "seconds": {"kernels": kernels, "reference": reference},
        "ratio": reference / kernels,
        "agreement": agreement,
        "gates": manifest.get("gates", []),
        "weights": sum(p.numel() for p in model.parameters()),
    }
    if entry.data == "digits" and hasattr(task, "score"):
        bits = task.score(model, data.digits().test.x[:SCORED])
        result["score"] = {"bits_per_dim": float(bits.mean()), "of": f"the first {SCORED} held-out digits"}
    if isinstance(samples, list):
        result["texts"] = samples
        files[out / f"{entry.name}.txt"] = ("\n\n".join(samples) + "\n").encode()
    else:
        result["picture"] = f"{entry.name}.png"
        files[out / f"{entry.name}.png"] = encode_png(grid(samples, columns=10, scale=6))
    return result


def _plan(entry: Entry, task: Task, model: nn.Module) -> tuple[Callable[..., Samples], dict[str, Any]]:
    """What to ask of a model: ``draw(show, warm_up)``, and the options to note beside the result."""
    if entry.name == "bert":

        def fill(show: Callable[[int, int], None], warm_up: bool) -> Samples:
            drawn: list[str] = []
            for done, text in enumerate(BLANKS[:1] if warm_up else BLANKS):
                drawn += task.generate(model, n=1, seed=SEED, prompt=text)
                show(done + 1, len(BLANKS))
            return drawn

        return fill, {"prompts": list(BLANKS)}
    count = IMAGES if entry.data == "digits" else 2
    options: dict[str, Any] = {"prompt": PROMPT} if entry.data == "text" else {}
    short = {name: value for name, value in (("steps", 2), ("length", 2)) if name in task.OPTIONS}

    def draw(show: Callable[[int, int], None], warm_up: bool) -> Samples:
        return task.generate(model, n=count, seed=SEED, progress=show, **(options | short if warm_up else options))

    return draw, {"n": count, "seed": SEED, **options}


def _timed(draw: Callable[..., Samples], show: Callable[[int, int], None]) -> tuple[Samples, float]:
    """The samples, and the seconds they took: warm, and the best of a few where that is cheap.

    Of two at least: on a shared machine one call in a hundred waits for a thread that does not run.
    """
    draw(show, True)
    best, spent, runs = float("inf"), 0.0, 0
    while runs < 2 or (spent < 0.3 and spent + best < 1.0):
        start = time.perf_counter()
        samples = draw(show, False)
        seconds = time.perf_counter() - start
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return samples, best


def compare(got: Samples, wanted: Samples, *, exact: bool) -> dict[str, Any]:
    """Whether two runs agree: within 1e-3 for images in [0,1], identically for ``exact`` ones and for text."""
    if isinstance(got, Tensor) and isinstance(wanted, Tensor):
        difference = (got - wanted).abs()
        largest = float(difference.max())
        result: dict[str, Any] = {"agrees": largest <= (0.0 if exact else TOLERANCE), "max_abs_difference": largest}
        if exact and largest:
            result["first_difference"] = [int(i) for i in difference.nonzero()[0]]
        return result
    for row, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a != b:
            shared = next((i for i, pair in enumerate(zip(a, b)) if pair[0] != pair[1]), min(len(a), len(b)))
            return {"agrees": False, "first_difference": [row, shared]}
    return {"agrees": True}

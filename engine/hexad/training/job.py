"""One whole training: build, train, judge on held-out data, and write checkpoint and manifest together."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .. import checkpoint, data, registry
from ..evaluation import Gate
from .loop import run

Progress = Callable[[int, int, Mapping[str, float]], None]


def train(
    name: str, out: Path, *, steps: int | None = None, fresh: bool = False, progress: Progress | None = None
) -> tuple[Path, list[Gate]]:
    """Train ``name`` by its recipe into ``out``; the path of the weights, and the gates in the manifest.

    An interrupted run continues, unless ``fresh``. What is judged is what is stored: weights rounded to
    bfloat16 on disk are rounded before they are judged. ``progress(done, of, figures)``.
    """
    entry = registry.entry(name, instruments=True)
    task = entry.load_task()
    recipe = task.RECIPE if steps is None else replace(task.RECIPE, steps=steps)
    torch.manual_seed(recipe.seed)
    model = task.build()
    checkpoint.as_stored(checkpoint.tensors_of(model))  # raises now, not in 20 minutes, when too large
    resume = out / f"{name}.resume.safetensors"
    if fresh:
        resume.unlink(missing_ok=True)

    def report(done: int, figures: Mapping[str, float]) -> None:
        if progress is not None:
            progress(done, recipe.steps, figures)

    weights = run(task.trainer(model, recipe), recipe, resume_path=resume, progress=report, keep_resume=True)
    judged = task.build()
    checkpoint.fill(judged, checkpoint.as_stored(weights), source=name)
    gates = task.evaluate(judged.eval().requires_grad_(False))
    manifest = {
        "config": checkpoint.config_of(judged),
        "data": data.provenance(entry.data),
        "recipe": asdict(recipe),
        "gates": [gate.to_json() for gate in gates],
    }
    path = checkpoint.save(name, weights, manifest, out)
    resume.unlink(missing_ok=True)
    return path, gates

"""Which models there are. A model's code is imported when it is first asked for, never before."""

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from . import checkpoint
from .errors import HexadError, InputError
from .evaluation import Gate
from .training.loop import Recipe, Trainer


class Task(Protocol):
    """What a module of ``hexad.tasks`` holds: plain functions, no base class.

    ``score(model, images uint8 (B,8,8)) -> (B,) bits/dim`` exists only where the model has a likelihood.
    ``generate`` returns (n,8,8) float32 in [0,1], or n strings.
    """

    RECIPE: Recipe
    OPTIONS: frozenset[str]
    build: Callable[[], nn.Module]
    trainer: Callable[[nn.Module, Recipe], Trainer]
    generate: Callable[..., Tensor | list[str]]
    evaluate: Callable[[nn.Module], list[Gate]]


@dataclass(frozen=True)
class Entry:
    """A model's name, its family, one line about it, the data it learns from, and its task module."""

    name: str
    family: str
    title: str
    data: str
    task: str

    def load_task(self) -> Task:
        """Import the task module; HexadError where it, or something it needs, is not installed."""
        try:
            return cast(Task, importlib.import_module(self.task))
        except (ImportError, ValueError) as error:  # hexad_kernels refuses an unknown HEXAD_BACKEND at import
            raise HexadError(f"model {self.name!r} cannot be used here: {error}") from error


def _entries(*rows: tuple[str, str, str, str]) -> dict[str, Entry]:
    return {name: Entry(name, family, title, data, f"hexad.tasks.{name}") for name, family, title, data in rows}


MODELS = _entries(
    ("gan", "GAN", "class-conditional convolutional GAN", "digits"),
    ("vae", "VAE", "convolutional variational autoencoder", "digits"),
    ("dit", "diffusion", "class-conditional diffusion transformer with guidance", "digits"),
    ("pixelcnn", "autoregressive", "gated PixelCNN, sampled with a cache", "digits"),
    ("gpt", "transformer", "decoder-only transformer with a KV cache", "text"),
    ("bert", "transformer", "masked language model", "text"),
    ("realnvp", "flow", "RealNVP: affine coupling layers", "digits"),
    ("glow", "flow", "Glow: coupling layers and invertible 1x1 convolutions", "digits"),
)
# What models are judged with. Not a generative model, so not one of MODELS.
INSTRUMENTS = _entries(("classifier", "instrument", "digit classifier that judges the image models", "digits"))


def entry(name: str, *, instruments: bool = False) -> Entry:
    """The entry called ``name``; InputError, listing the names there are, when there is none."""
    known = MODELS | INSTRUMENTS if instruments else MODELS
    if name not in known:
        raise InputError("MODEL", repr(name), "one of " + " ".join(known))
    return known[name]


def scorers() -> list[str]:
    """The names of the models that are installed here and have a likelihood."""
    names = []
    for name, known in MODELS.items():
        with contextlib.suppress(HexadError):
            if hasattr(known.load_task(), "score"):
                names.append(name)
    return names


def load_with_manifest(name: str, path: str | Path | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """As ``load``, and the manifest beside the weights."""
    model = entry(name, instruments=True).load_task().build()
    manifest = checkpoint.load(model, name, path)
    return model.eval().requires_grad_(False), manifest


def load(name: str, path: str | Path | None = None) -> nn.Module:
    """The model ``name`` in eval mode with its shipped weights, or those at ``path`` (a file or its folder).

    Raises CheckpointError when the weights are missing, damaged, or those of another model.
    """
    return load_with_manifest(name, path)[0]

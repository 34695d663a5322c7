"""Checks of what a model is asked for: each returns the value, or raises InputError that names the argument."""

import math
import operator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .data import LEVELS
from .errors import InputError

Kind = TypeVar("Kind", bound=nn.Module)
LAST_SEED = 2**62


def model_of(model: nn.Module, kind: type[Kind]) -> Kind:
    """``model`` when it is of that class."""
    if not isinstance(model, kind):
        raise InputError("model", type(model).__name__, f"a {kind.__name__}")
    return model


def integer(argument: str, value: Any, low: int, high: int | None = None) -> int:
    """``value`` when it is an integer, low <= value <= high."""
    wants = f"at least {low}" if high is None else f"{low} to {high}"
    try:
        whole = operator.index(value)
    except TypeError:
        raise InputError(argument, repr(value), f"an integer, {wants}") from None
    if whole < low or (high is not None and whole > high):
        raise InputError(argument, whole, wants)
    return whole


def number(argument: str, value: Any) -> float:
    """``value`` when it is a finite number, 0 or more."""
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InputError(argument, repr(value), "a finite number, 0 or more")
    return value


def share(argument: str, value: Any) -> float:
    """``value`` when 0 < value <= 1."""
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise InputError(argument, repr(value), "more than 0 and at most 1")
    return value


def seeds(n: Any, seed: Any) -> range:
    """The seeds of n samples: seed, seed + 1..."""
    count, first = integer("n", n, 1), integer("seed", seed, 0, LAST_SEED)
    return range(first, first + count)


def text(argument: str, value: Any, wants: str = "some text") -> str:
    """``value`` when it is a text of more than white space. A terminal's undecodable bytes are no text."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(argument, repr(value), wants)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(argument, ascii(value), f"{wants}, valid as UTF-8") from None
    return value


def levels(images: Any) -> Tensor:
    """``images`` when they are grey levels (B,8,8) uint8 of 0..16, at least one image."""
    wants = f"uint8 levels (B, 8, 8) of 0 to {LEVELS - 1}, B >= 1"
    if not isinstance(images, Tensor):
        raise InputError("images", type(images).__name__, wants)
    if images.dtype != torch.uint8 or images.ndim != 3 or not len(images) or images.shape[1:] != (8, 8):
        raise InputError("images", f"{images.dtype} {tuple(images.shape)}".removeprefix("torch."), wants)
    if int(images.max()) >= LEVELS:
        raise InputError("images", f"a level of {int(images.max())}", wants)
    return images

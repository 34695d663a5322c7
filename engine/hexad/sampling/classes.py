"""Which class each sample is asked to be."""

from __future__ import annotations

import torch
from torch import Tensor

from hexad.errors import InputError


def asked(n: int, class_: int | None, classes: int) -> Tensor:
    """(n,) int64: all `class_`, or 0, 1, 2... in turn when it is None. InputError for n < 1 or no such
    class."""
    if n < 1:
        raise InputError("n", n, "at least 1")
    if class_ is None:
        return torch.arange(n) % classes
    if not 0 <= class_ < classes:
        raise InputError("class_", class_, f"0 to {classes - 1}")
    return torch.full((n,), class_)

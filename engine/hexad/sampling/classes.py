"""Which class each sample is asked to be."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks


def asked(n: int, class_: int | None, classes: int) -> Tensor:
    """(n,) int64: all `class_`, or 0, 1, 2... in turn when it is None. InputError for n < 1 or no such
    class."""
    checks.integer("n", n, 1)
    if class_ is None:
        return torch.arange(n) % classes
    return torch.full((n,), checks.integer("class_", class_, 0, classes - 1))

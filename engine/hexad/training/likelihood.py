"""Maximum likelihood: minimise the mean of -log2 p(x), in bits per symbol of the data."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loop import GradientTrainer, Recipe

Batch = TypeVar("Batch")


def maximum_likelihood(
    model: nn.Module,
    recipe: Recipe,
    draw: Callable[[torch.Generator], Batch],
    bits: Callable[[Batch], Tensor],
) -> GradientTrainer:
    """A trainer that minimises the mean of ``bits(batch)``, where ``draw(generator)`` makes the batch."""

    def loss(_: int, generator: torch.Generator) -> Tensor:
        return bits(draw(generator)).mean()

    return GradientTrainer(model, loss, recipe)


def minibatch(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """``size`` rows of x, drawn with replacement."""
    return x[torch.randint(len(x), (size,), generator=generator)]


def categorical_bits(logits: Tensor, targets: Tensor) -> Tensor:
    """-log2 softmax(logits)[target]: logits (B, V, ...) over V symbols, targets (B, ...) -> (B, ...)."""
    return F.cross_entropy(logits, targets.long(), reduction="none") / math.log(2)

"""Glow on the digits: trained, sampled and judged as RealNVP is."""

from torch import nn

from ..models.glow import Config, Glow
from ..training.loop import Recipe
from .realnvp import OPTIONS, evaluate, generate, score, trainer

__all__ = ["OPTIONS", "RECIPE", "build", "evaluate", "generate", "score", "trainer"]

RECIPE = Recipe(steps=1600, batch=64, lr=3e-3, weight_decay=0.1, ema=0.995)


def build() -> nn.Module:
    return Glow(Config())

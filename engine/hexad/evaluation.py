"""Judging models on held-out data: gates, the classifier's verdicts, the Gaussian that flows must beat."""

import functools
import math
import operator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import data

_RELATIONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_PIXELS = 64


@dataclass(frozen=True)
class Gate:
    """A figure measured on held-out data and its bound. ``relation`` is one of >= <= > < ==."""

    name: str
    value: float
    relation: str
    bound: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether ``value relation bound`` holds; never for NaN."""
        return bool(_RELATIONS[self.relation](self.value, self.bound))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def bits_per_dim(log_density: Tensor) -> Tensor:
    """Natural log density of y = (x + u) / 17 over 64 pixels, (B,) -> bits/dim of the discrete x, (B,).

    A level is a bin of volume 17^-64 in y, so -log2 P(x) <= -E_u log2 p(y) + 64 log2 17.
    """
    return -log_density / (_PIXELS * math.log(2)) + math.log2(data.LEVELS)


@functools.cache
def gaussian_bits_per_dim(draws: int = 16) -> float:
    """Test bits/dim of a full-covariance Gaussian fitted to ``draws`` dequantisations of the train split.

    The baseline that a density model has to beat: all that pairwise correlations know, and nothing else.
    """
    rng = np.random.default_rng(0)

    def dequantised(x: Tensor) -> np.ndarray:
        levels = x.numpy().reshape(1, -1, _PIXELS).astype(np.float64)
        return ((levels + rng.random((draws, *levels.shape[1:]))) / data.LEVELS).reshape(-1, _PIXELS)

    digits = data.digits()
    train, test = dequantised(digits.train.x), dequantised(digits.test.x)
    mean, factor = train.mean(0), np.linalg.cholesky(np.cov(train, rowvar=False, bias=True))
    whitened = np.linalg.solve(factor, (test - mean).T)
    log_density = -0.5 * (whitened**2).sum(0) - np.log(np.diag(factor)).sum() - _PIXELS / 2 * math.log(2 * math.pi)
    return float(bits_per_dim(torch.from_numpy(log_density)).mean())


@functools.cache
def _classifier() -> nn.Module:
    from . import registry

    return registry.load("classifier")


@torch.no_grad()
def classify(images: Tensor) -> Tensor:
    """What the classifier, which has seen the train split only, reads: (n,8,8) in [0,1] -> (n,) classes."""
    prediction: Tensor = _classifier()(images.float()).argmax(-1)
    return prediction


def recognised(images: Tensor, asked: Tensor) -> float:
    """The fraction of images (n,8,8) in [0,1] that the classifier reads as the class (n,) asked for."""
    return float((classify(images) == asked).double().mean())

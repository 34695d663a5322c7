"""Sampling and density of a normalising flow z = f(x) with z ~ N(0, I)."""

import math

import hexad_kernels as hk
import torch
from torch import Tensor

from ..models.realnvp import Flow


@torch.no_grad()
def sample(model: Flow, seeds: Tensor, *, temperature: float = 1.0) -> Tensor:
    """x = f^-1(temperature z), one image per seed: (B,1,H,W). Image i depends on ``seeds[i]`` alone."""
    z = temperature * hk.randn(seeds, model.latent_shape)
    x, _ = model.inverse(z)
    return x


def log_prob(model: Flow, x: Tensor) -> Tensor:
    """log p(x) = log N(f(x); 0, I) + log |det df/dx| for x (B,1,H,W) in [0, 1) -> (B,), in nats."""
    z, log_det = model(x)
    z = z.flatten(1)
    return log_det - 0.5 * (z * z).sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)

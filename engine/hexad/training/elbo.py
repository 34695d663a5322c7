"""The variational objective."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.vae import VAE


def elbo_terms(model: VAE, levels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(-log p(x | z), KL(q(z | x) || N(0, I))), both (B,) in nats (Kingma & Welling 2013, arXiv 1312.6114): the
    evidence lower bound is -(first + second).

    levels (B, H, W) uint8; noise (B, latent) standard normals, which place z within q(z | x), or (K, B, latent): the
    first is then the mean over K of them.
    """
    mean, log_variance = model.encode(to_image(levels, model.config.levels))
    draws = noise.view(-1, *mean.shape)
    distortion = torch.zeros(len(levels), device=mean.device)
    for draw in draws:
        logits = model.decode(mean + draw * (0.5 * log_variance).exp())
        distortion = distortion + F.cross_entropy(logits, levels.long(), reduction="none").sum((1, 2))
    return distortion / len(draws), gaussian_kl(mean, log_variance)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats: (B, D), (B, D) -> (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def to_image(levels: Tensor, count: int) -> Tensor:
    """Grey levels (B, H, W) in 0..count-1 -> (B, 1, H, W) float32 in [-1, 1]."""
    return levels[:, None].float() * (2 / (count - 1)) - 1


def elbo_loss(
    model: VAE, levels: Tensor, *, batch: int = 128, kl_warmup: int = 0
) -> Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]:
    """Negative ELBO in bits/dim over random rows of levels (N, H, W), the KL's weight rising from 0 to 1 over
    the first `kl_warmup` steps (Bowman et al. 2015, arXiv 1511.06349)."""
    per_dim = 1 / (levels[0].numel() * math.log(2))

    def loss(i: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = torch.randint(len(levels), (batch,), generator=generator)
        noise = torch.randn(batch, model.config.latent, generator=generator)
        distortion, kl = elbo_terms(model, levels[rows], noise)
        weight = min(1.0, (i + 1) / kl_warmup) if kl_warmup else 1.0
        figures = {"kl": float(kl.detach().mean()) * per_dim}
        return (distortion + weight * kl).mean() * per_dim, figures

    return loss

"""One-shot samplers: noise in, image out."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.gan import Generator
from ..models.vae import VAE


def sample_gan(generator: Generator, z: Tensor, labels: Tensor) -> Tensor:
    """z (B, latent) of unit variance, labels (B,) -> images (B, size, size) in [0, 1] (Goodfellow et al.
    2014, arXiv 1406.2661; conditioning: Mirza & Osindero 2014, arXiv 1411.1784)."""
    return (generator(z, labels)[:, 0] + 1) / 2


def sample_vae(vae: VAE, z: Tensor) -> Tensor:
    """z (B, latent) from the prior N(0, I) -> images (B, size, size) in [0, 1]: the mean grey level of p(x |
    z) at each pixel (Kingma & Welling 2013, arXiv 1312.6114)."""
    return mean_image(vae.decode(z))


def mean_image(logits: Tensor) -> Tensor:
    """Logits (B, levels, H, W) -> the expected grey level (B, H, W), scaled to [0, 1]."""
    levels = torch.linspace(0, 1, logits.shape[1], device=logits.device)
    # Not a matrix product: its sums may depend on the batch.
    return (logits.softmax(1) * levels.view(-1, 1, 1)).sum(1)

"""The VAE on handwritten digits: recipe, generation, evidence lower bound, gates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hexad_kernels import randn

from .. import checks, data
from ..evaluation import Gate, gaussian_bits_per_dim
from ..models.vae import VAE
from ..sampling import Progress
from ..sampling.latent import mean_image, sample_vae
from ..training.elbo import elbo_loss, elbo_terms, to_image
from ..training.loop import GradientTrainer, Recipe

RECIPE = Recipe(steps=700, batch=128, lr=2e-3, ema=0.99, weight_decay=0.05)
OPTIONS: frozenset[str] = frozenset()
DRAWS = 8


def build() -> VAE:
    return VAE()


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    loss = elbo_loss(checks.model_of(model, VAE), data.digits().train.x, batch=recipe.batch, kl_warmup=300)
    return GradientTrainer(model, loss, recipe)


@torch.no_grad()
def generate(model: nn.Module, *, n: int, seed: int, progress: Progress | None = None) -> Tensor:
    """n images (n, 8, 8) in [0, 1]; image i has the latent of seed + i, so it does not depend on n."""
    vae = checks.model_of(model, VAE)
    images = sample_vae(vae, randn(checks.seeds(n, seed), (vae.config.latent,)))
    if progress:
        progress(1, 1)
    return images


@torch.no_grad()
def score(model: nn.Module, images: Tensor) -> Tensor:
    """Grey levels (B, 8, 8) uint8 -> the negative evidence lower bound (B,) in bits/dim, the mean over 8
    draws of z.

    Every image gets the same draws, so its score does not depend on its neighbours.
    """
    vae, images = checks.model_of(model, VAE), checks.levels(images)
    draws = randn(range(DRAWS), (vae.config.latent,))
    distortion, kl = elbo_terms(vae, images, draws[:, None].expand(-1, len(images), -1))
    return (distortion + kl) / (images[0].numel() * math.log(2))


@torch.no_grad()
def reconstruct(model: nn.Module, images: Tensor) -> Tensor:
    """Grey levels (B, 8, 8) uint8 -> their images in [0, 1] after encoding (at the posterior mean) and
    decoding."""
    vae = checks.model_of(model, VAE)
    mean, _ = vae.encode(to_image(checks.levels(images), vae.config.levels))
    return mean_image(vae.decode(mean))


def evaluate(model: nn.Module) -> list[Gate]:
    """The bound on held-out images against the full-covariance Gaussian's bits/dim, and the reconstructions'
    PSNR."""
    test = data.digits().test.x
    errors = (reconstruct(model, test) - test.float() / 16).square().mean((1, 2))
    return [
        Gate("test ELBO", float(score(model, test).mean()), "<", gaussian_bits_per_dim(), "bits/dim"),
        Gate("reconstruction PSNR", float((-10 * errors.log10()).mean()), ">=", 18.0, "dB"),
    ]

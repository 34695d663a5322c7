"""The GAN on handwritten digits: recipe, generation, gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hexad_kernels import randn

from .. import checks, data
from ..evaluation import Gate, recognised
from ..models.gan import Discriminator, Generator
from ..sampling import Progress
from ..sampling.classes import asked
from ..sampling.latent import sample_gan
from ..training.adversarial import AdversarialTrainer
from ..training.loop import Recipe

RECIPE = Recipe(steps=1500, batch=64, lr=1e-3, ema=0.995, betas=(0.0, 0.99))
R1 = 0.3
OPTIONS = frozenset({"class_"})


def build() -> Generator:
    return Generator()


def trainer(model: nn.Module, recipe: Recipe) -> AdversarialTrainer:
    generator = checks.model_of(model, Generator)
    x, y = data.digits().train
    images = x[:, None].float() / 8 - 1
    return AdversarialTrainer(generator, Discriminator(generator.config), images, y, recipe, r1=R1)


@torch.no_grad()
def generate(
    model: nn.Module,
    *,
    n: int,
    seed: int,
    progress: Progress | None = None,
    class_: int | None = None,
) -> Tensor:
    """n images (n, 8, 8) in [0, 1] of class `class_`, or of the classes 0..9 in turn.

    Image i has the latent of seed + i, so it does not depend on n. Raises InputError for a class that there
    is not.
    """
    generator, seeds = checks.model_of(model, Generator), checks.seeds(n, seed)
    labels = asked(n, class_, generator.config.classes)
    images = sample_gan(generator, randn(seeds, (generator.config.latent,)), labels)
    if progress:
        progress(1, 1)
    return images


def evaluate(model: nn.Module, n: int = 1000) -> list[Gate]:
    """How many of n samples the classifier reads as the class asked for, in all and in the worst class."""
    images, labels = generate(model, n=n, seed=1_000_000), asked(n, None, 10)
    worst = min(recognised(images[labels == c], labels[labels == c]) for c in range(10))
    return [
        Gate("recognised", recognised(images, labels), ">=", 0.85),
        Gate("recognised, worst class", worst, ">=", 0.6),
    ]

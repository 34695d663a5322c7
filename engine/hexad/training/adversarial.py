"""The adversarial objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.gan import Discriminator, Generator
from .loop import GradientTrainer, Recipe


class AdversarialTrainer:
    """Generator and discriminator in turns, one step each, with the non-saturating loss (Goodfellow et al.
    2014, arXiv 1406.2661):

        D: mean softplus(-D(x, y)) + mean softplus(D(G(z, y), y)) + (r1 / 2) mean |grad_x D(x, y)|^2
        G: mean softplus(-D(G(z, y), y))

    with the gradient penalty R1 at real images (Mescheder et al. 2018, arXiv 1801.04406), taken every fourth
    step at four times its weight (Karras et al. 2019, arXiv 1912.04958). images (N, 1, H, W) in [-1, 1],
    labels (N,). The generator's running mean (EMA) ships, with batch statistics of its own.
    """

    penalty_every = 4

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        images: Tensor,
        labels: Tensor,
        recipe: Recipe,
        *,
        r1: float,
    ) -> None:
        self.images, self.labels, self.recipe, self.r1 = images, labels, recipe, r1
        self.generator, self.discriminator = generator, discriminator
        # Another seed each, or the generator would be asked for the very images that the discriminator just
        # saw.
        self.turns = {
            "discriminator": GradientTrainer(
                discriminator, self._discriminator_loss, replace(recipe, seed=2 * recipe.seed, ema=0.0)
            ),
            "generator": GradientTrainer(generator, self._generator_loss, replace(recipe, seed=2 * recipe.seed + 1)),
        }

    def step(self, i: int) -> dict[str, float]:
        return {name: turn.step(i)["loss"] for name, turn in self.turns.items()}

    def state(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": t for name, turn in self.turns.items() for key, t in turn.state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, turn in self.turns.items():
            turn.load({k.removeprefix(f"{name}."): t for k, t in state.items() if k.startswith(f"{name}.")})

    def result(self) -> dict[str, Tensor]:
        shipped = Generator(self.generator.config)
        shipped.load_state_dict(self.turns["generator"].result())
        settle_batch_norm(shipped, seed=self.recipe.seed)
        return {name: tensor.detach() for name, tensor in shipped.state_dict().items()}

    def _fakes(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(self.generator.config.classes, (self.recipe.batch,), generator=random)
        z = torch.randn(self.recipe.batch, self.generator.config.latent, generator=random)
        return self.generator(z, labels), labels

    def _discriminator_loss(self, i: int, random: torch.Generator) -> Tensor:
        with torch.no_grad():
            fakes, asked = self._fakes(random)
        rows = torch.randint(len(self.images), (self.recipe.batch,), generator=random)
        penalised = i % self.penalty_every == 0
        reals = self.images[rows].requires_grad_(penalised)
        real, fake = self.discriminator(reals, self.labels[rows]), self.discriminator(fakes, asked)
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        if penalised:
            (slope,) = torch.autograd.grad(real.sum(), reals, create_graph=True)
            loss = loss + 0.5 * self.penalty_every * self.r1 * slope.square().sum((1, 2, 3)).mean()
        return loss

    def _generator_loss(self, i: int, random: torch.Generator) -> Tensor:
        return F.softplus(-self.discriminator(*self._fakes(random))).mean()


@torch.no_grad()
def settle_batch_norm(generator: Generator, *, seed: int, rounds: int = 20, batch: int = 500) -> None:
    """Replace the batch norms' running statistics by the mean over `rounds` fresh batches: the averaged
    weights' own, where those gathered in training belong to weights long gone."""
    norms = [m for m in generator.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    generator.train()
    random = torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        labels = torch.randint(generator.config.classes, (batch,), generator=random)
        generator(torch.randn(batch, generator.config.latent, generator=random), labels)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum

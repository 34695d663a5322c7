"""DiT on handwritten digits: recipe, generation with guidance by any of four samplers, gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hexad import data
from hexad.errors import InputError
from hexad.evaluation import Gate, recognised
from hexad.models.dit import DiT
from hexad.sampling import denoise, schedules
from hexad.sampling.classes import asked
from hexad.training.denoising import velocity_loss
from hexad.training.loop import GradientTrainer, Recipe
from hexad_kernels import randn

RECIPE = Recipe(steps=2000, batch=128, lr=2e-3, ema=0.995)
OPTIONS = frozenset({"class_", "steps", "guidance", "sampler"})
SAMPLERS = ("dpmpp_2m", "ddim", "ddpm", "euler")
TRAIN_STEPS = 1000
ALPHAS = schedules.cosine_alphas(TRAIN_STEPS)


def build() -> DiT:
    return DiT()


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    assert isinstance(model, DiT)
    x, y = data.digits().train
    null = model.config.classes
    images = x[:, None].float() / 8 - 1
    return GradientTrainer(
        model, velocity_loss(model, ALPHAS, images, y, null=null, batch=recipe.batch), recipe
    )


@torch.no_grad()
def generate(
    model: nn.Module,
    *,
    n: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    class_: int | None = None,
    steps: int = 25,
    guidance: float = 3.0,
    sampler: str = "dpmpp_2m",
) -> Tensor:
    """n images (n, 8, 8) in [0, 1] of class `class_`, or of the classes 0..9 in turn.

    Image i has the noise of seed + i, so it does not depend on n. Guidance 1 is the conditional model alone.
    Raises InputError for a class, a number of steps or a sampler that there is not.
    """
    assert isinstance(model, DiT)
    labels = asked(n, class_, model.config.classes)
    if not 1 <= steps <= TRAIN_STEPS:
        raise InputError("steps", steps, f"1 to {TRAIN_STEPS}")
    if sampler not in SAMPLERS:
        raise InputError("sampler", repr(sampler), "one of " + " ".join(SAMPLERS))
    shape = (model.config.channels, model.config.size, model.config.size)
    seeds = torch.arange(seed, seed + n)

    def noise(i: int) -> Tensor:
        return randn(seeds, shape, offset=i + 1)

    network, z = guided(model, labels, guidance), randn(seeds, shape)
    times = schedules.spaced(TRAIN_STEPS, steps)
    plan = getattr(schedules, sampler)(ALPHAS, times, prediction="v", guidance=guidance)
    if sampler == "ddpm":
        x = denoise.sample_ddpm(network, z, plan, noise, progress)
    else:
        x = getattr(denoise, f"sample_{sampler}")(network, z, plan, progress=progress)
    return ((x[:, 0] + 1) / 2).clamp(0, 1)


def guided(model: DiT, labels: Tensor, guidance: float) -> denoise.Model:
    """The model as the samplers call it: with guidance, both halves in one batch; without, the conditional
    alone."""
    n = len(labels)
    both = torch.cat([labels, torch.full_like(labels, model.config.classes)])

    def network(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        if guidance == 1.0:
            return model(x, t.expand(n), labels), None
        cond, uncond = model(torch.cat([x, x]), t.expand(2 * n), both).chunk(2)
        return cond, uncond

    return network


def evaluate(model: nn.Module, n: int = 500) -> list[Gate]:
    """How many of n samples the classifier reads as the class asked for: 25 steps of DPM-Solver++ 2M,
    guided."""
    gates = []
    for sampler, bound in (("dpmpp_2m", 0.95), ("ddim", 0.9), ("ddpm", 0.9)):
        images = generate(model, n=n, seed=1_000_000, sampler=sampler)
        value = recognised(images, asked(n, None, 10))
        gates.append(Gate(f"recognised, {sampler} 25 steps", value, ">=", bound))
    return gates

"""DiT on handwritten digits: recipe, generation with guidance by any of four samplers, gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hexad_kernels import randn

from .. import checks, data
from ..errors import InputError
from ..evaluation import Gate, recognised
from ..models.dit import DiT
from ..sampling import Progress, denoise, schedules
from ..sampling.classes import asked
from ..training.denoising import velocity_loss
from ..training.loop import GradientTrainer, Recipe

RECIPE = Recipe(steps=1800, batch=128, lr=3e-3, ema=0.995)
OPTIONS = frozenset({"class_", "steps", "guidance", "sampler"})
SAMPLERS = ("dpmpp_2m", "ddim", "ddpm", "euler")
TRAIN_STEPS = 1000
ALPHAS = schedules.cosine_alphas(TRAIN_STEPS)


def build() -> DiT:
    return DiT()


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    dit = checks.model_of(model, DiT)
    x, y = data.digits().train
    null = dit.config.classes
    images = x[:, None].float() / 8 - 1
    return GradientTrainer(dit, velocity_loss(dit, ALPHAS, images, y, null=null, batch=recipe.batch), recipe)


@torch.no_grad()
def generate(
    model: nn.Module,
    *,
    n: int,
    seed: int,
    progress: Progress | None = None,
    class_: int | None = None,
    steps: int = 25,
    guidance: float = 2.0,
    sampler: str = "dpmpp_2m",
) -> Tensor:
    """n images (n, 8, 8) in [0, 1] of class `class_`, or of the classes 0..9 in turn.

    Image i has the noise of seed + i, so it does not depend on n. Guidance 1 is the conditional model alone.
    Raises InputError for a class, a number of steps or a sampler that there is not.
    """
    dit, seeds = checks.model_of(model, DiT), checks.seeds(n, seed)
    labels = asked(n, class_, dit.config.classes)
    checks.integer("steps", steps, 1, TRAIN_STEPS)
    checks.number("guidance", guidance)
    if sampler not in SAMPLERS:
        raise InputError("sampler", repr(sampler), "one of " + " ".join(SAMPLERS))
    shape = (dit.config.channels, dit.config.size, dit.config.size)

    def noise(i: int) -> Tensor:
        return randn(seeds, shape, offset=i + 1)

    network, z = guided(dit, labels, guidance), randn(seeds, shape)
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
    """How many samples the classifier reads as the class asked for, with guidance at 25 steps: n of them by
    DPM-Solver++ 2M, which the gate is about, and n // 2 by the two older samplers."""
    gates = []
    for sampler, count, bound in (("dpmpp_2m", n, 0.95), ("ddim", n // 2, 0.9), ("ddpm", n // 2, 0.9)):
        images = generate(model, n=count, seed=1_000_000, sampler=sampler)
        value = recognised(images, asked(count, None, 10))
        gates.append(Gate(f"recognised, {sampler} 25 steps", value, ">=", bound))
    return gates

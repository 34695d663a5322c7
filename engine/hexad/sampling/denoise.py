"""Diffusion samplers: a loop over noise levels, whose arithmetic is one `hexad_kernels.step` per level.

Each takes `model(x, t) -> (cond, uncond)` (uncond None without guidance), the starting noise z (B, C, H, W)
of unit variance, and the `Schedule` of the same name from `schedules.py`; each returns the image that the
last step reaches. `noise(i)` gives step i's standard normals, shaped like z. `progress(done, total)` is
called after each step.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hexad_kernels import step

from . import Progress
from .schedules import Schedule

Model = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
Noise = Callable[[int], Tensor]


def sample_ddpm(model: Model, z: Tensor, plan: Schedule, noise: Noise, progress: Progress | None = None) -> Tensor:
    """Denoising diffusion (Ho et al. 2020, arXiv 2006.11239, algorithm 2): denoise a little, add some noise
    back."""
    x = z
    for i, t in enumerate(plan.timesteps):
        cond, uncond = model(x, t)
        (x,) = step(plan.table, i, x, cond, uncond, noise=noise(i))
        _tell(progress, i, plan)
    return x


def sample_ddim(
    model: Model, z: Tensor, plan: Schedule, noise: Noise | None = None, progress: Progress | None = None
) -> Tensor:
    """Denoising diffusion implicit models (Song et al. 2020, arXiv 2010.02502). `noise` is needed when eta >
    0."""
    x = z
    for i, t in enumerate(plan.timesteps):
        cond, uncond = model(x, t)
        (x,) = step(plan.table, i, x, cond, uncond, noise=noise(i) if noise and plan.stochastic else None)
        _tell(progress, i, plan)
    return x


def sample_dpmpp_2m(model: Model, z: Tensor, plan: Schedule, progress: Progress | None = None) -> Tensor:
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095): extrapolate from this clean image and the one
    before."""
    x = z
    history: tuple[Tensor, ...] = ()
    for i, t in enumerate(plan.timesteps):
        cond, uncond = model(x, t)
        x, clean = step(plan.table, i, x, cond, uncond, history=history, outputs=2)
        history = (clean,)
        _tell(progress, i, plan)
    return x


def sample_euler(model: Model, z: Tensor, plan: Schedule, progress: Progress | None = None) -> Tensor:
    """Euler in sigma space (Karras et al. 2022, arXiv 2206.00364): step also prepares the model's next
    input."""
    x, seen = plan.prior * z, z
    for i, t in enumerate(plan.timesteps):
        cond, uncond = model(seen, t)
        x, seen = step(plan.table, i, x, cond, uncond, outputs=2)
        _tell(progress, i, plan)
    return x


def sample_flow_euler(model: Model, z: Tensor, plan: Schedule, progress: Progress | None = None) -> Tensor:
    """Euler along a flow-matching velocity (Lipman et al. 2022, arXiv 2210.02747)."""
    x = z
    for i, t in enumerate(plan.timesteps):
        cond, uncond = model(x, t)
        (x,) = step(plan.table, i, x, cond, uncond)
        _tell(progress, i, plan)
    return x


def _tell(progress: Progress | None, i: int, plan: Schedule) -> None:
    if progress:
        progress(i + 1, len(plan))

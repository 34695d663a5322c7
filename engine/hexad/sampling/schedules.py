"""Coefficient tables: every sampler here is the one op `hexad_kernels.step` with its own numbers.

A table is (steps, 4, 8). Row 0 of a step holds A, B, the clip bound and the guidance scale, rows 1 to 3 the
weights of up to three outputs over (x, m, p, h1, h2, h3, last, z), where

    m = uncond + guidance (cond - uncond)        the model's output, guided
    p = clip(A x + B m)                          the clean image that it implies

Everything is computed in float64 and stored in float32. All raise ValueError for timesteps that do not fall
and for a clip bound that is not positive. Notation: abar is the cumulative product of 1 - beta, alpha =
sqrt(abar), s = sqrt(1 - abar), sigma = s / alpha, lambda = -ln sigma; a prime marks the next, cleaner level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

X, M, P, H1, H2, H3, LAST, Z = range(8)


@dataclass(frozen=True)
class Schedule:
    """A sampler's numbers.

    timesteps: (steps,) float32, the time that the model is told at each step.
    table: (steps, 4, 8) float32, what `hexad_kernels.step` reads.
    prior: the standard deviation of the state that sampling starts from.
    """

    timesteps: Tensor
    table: Tensor
    prior: float = 1.0

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def stochastic(self) -> bool:
        """True when some step adds noise."""
        return bool((self.table[:, 1, Z] != 0).any())


def linear_alphas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """abar (steps,) float64 of betas spaced evenly from `first` to `last` (Ho et al. 2020, arXiv
    2006.11239)."""
    return np.cumprod(1.0 - np.linspace(first, last, steps, dtype=np.float64))


def cosine_alphas(steps: int = 1000, largest: float = 0.999) -> np.ndarray:
    """abar (steps,) float64 with abar(t) ~ cos^2, each beta held below `largest` (Nichol & Dhariwal 2021,
    arXiv 2102.09672)."""
    edges = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.cumprod(1.0 - np.minimum(1.0 - edges[1:] / edges[:-1], largest))


def spaced(train_steps: int, steps: int, spacing: str = "trailing") -> np.ndarray:
    """Which of `train_steps` noise levels a sampler of `steps` steps visits, noisiest first: (steps,) int64.

    trailing: ends at the noisiest level (Lin et al. 2023, arXiv 2305.08891, table 2); leading: multiples of
    the ratio, from 0; linspace: both ends; open: `steps` + 1 even points without the 0, as DPM-Solver takes
    them. Raises ValueError for a number of steps outside 1..train_steps and for an unknown spacing.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps: got {steps}, wants 1 to {train_steps}")
    if spacing == "trailing":
        # Divided last: a fractional stride would lose or gain a point by rounding.
        times = np.round(train_steps - np.arange(steps) * train_steps / steps) - 1.0
    elif spacing == "leading":
        times = np.arange(float(steps))[::-1] * (train_steps // steps)
    elif spacing == "linspace":
        times = np.round(np.linspace(0, train_steps - 1, steps))[::-1]
    elif spacing == "open":
        times = np.round(np.linspace(0, train_steps - 1, steps + 1))[:0:-1]
    else:
        raise ValueError(f"spacing: got {spacing!r}, wants 'trailing', 'leading', 'linspace' or 'open'")
    return times.astype(np.int64)


def ddpm(
    abar: np.ndarray,
    timesteps: Sequence[int] | np.ndarray,
    *,
    prediction: str = "eps",
    clip: float = math.inf,
    guidance: float = 1.0,
    variance: str = "small",
) -> Schedule:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 7), over any descending subset of the levels.

        x' = [alpha' beta / (1 - abar)] p + [sqrt(abar / abar') (1 - abar') / (1 - abar)] x + sd z,
        beta = 1 - abar / abar', sd^2 = beta (1 - abar') / (1 - abar)  ("small")  or  beta  ("large").

    The last step reaches abar' = 1 and adds no noise. Raises ValueError for an unknown prediction or
    variance.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance: got {variance!r}, wants 'small' or 'large'")
    levels, following = _levels(abar, timesteps)
    table = _table(len(levels), clip, guidance)
    for i, (a, b) in enumerate(zip(levels, following)):
        beta = 1 - a / b
        table[i, 0, :2] = clean_of(prediction, math.sqrt(a), math.sqrt(1 - a))
        table[i, 1, P] = math.sqrt(b) * beta / (1 - a)
        table[i, 1, X] = math.sqrt(a / b) * (1 - b) / (1 - a)
        if i + 1 < len(levels):
            table[i, 1, Z] = math.sqrt(beta * (1 - b) / (1 - a) if variance == "small" else beta)
    return _schedule(timesteps, table)


def ddim(
    abar: np.ndarray,
    timesteps: Sequence[int] | np.ndarray,
    *,
    prediction: str = "eps",
    clip: float = math.inf,
    guidance: float = 1.0,
    eta: float = 0.0,
    final: float = 1.0,
) -> Schedule:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12), deterministic at eta = 0 and ancestral at eta = 1.

        x' = alpha' p + sqrt(1 - abar' - sd^2) eps + sd z,
        sd = eta sqrt((1 - abar') / (1 - abar) (1 - abar / abar'))

    eps is the model's own, not the one that the clipped p implies. `final` is the abar' that the last step
    reaches. Raises ValueError for an unknown prediction.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: got {eta}, wants 0 to 1")
    levels, following = _levels(abar, timesteps, final)
    table = _table(len(levels), clip, guidance)
    for i, (a, b) in enumerate(zip(levels, following)):
        alpha, s = math.sqrt(a), math.sqrt(1 - a)
        sd = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
        table[i, 0, :2] = clean_of(prediction, alpha, s)
        table[i, 1, [X, M]] = math.sqrt(1 - b - sd * sd) * noise_of(prediction, alpha, s)
        table[i, 1, P] = math.sqrt(b)
        table[i, 1, Z] = sd
    return _schedule(timesteps, table)


def dpmpp_2m(
    abar: np.ndarray,
    timesteps: Sequence[int] | np.ndarray,
    *,
    prediction: str = "eps",
    clip: float = math.inf,
    guidance: float = 1.0,
    final: str = "zero",
    lower_order_final: bool = True,
) -> Schedule:
    """DPM-Solver++ 2M, the midpoint form (Lu et al. 2022, arXiv 2211.01095, algorithm 2). With h = lambda' -
    lambda, r = h_before / h and k = alpha' (1 - e^-h),

        x' = (s' / s) x + k (1 + 1 / 2r) p - k / 2r h1

    The second output is p: the next step's h1. First order (no h1) at the first step, at a last step that
    reaches sigma' = 0 (`final` "zero", where h is infinite), and at the last of fewer than 15 steps with
    `lower_order_final`. `final` "sigma_min" stops at the cleanest training level instead; where that repeats
    the level before (h = 0) the step is the identity. Raises ValueError for an unknown prediction or final.
    """
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final: got {final!r}, wants 'zero' or 'sigma_min'")
    levels, following = _levels(abar, timesteps, 1.0 if final == "zero" else float(abar[0]))
    table = _table(len(levels), clip, guidance)
    before = 0.0
    for i, (a, b) in enumerate(zip(levels, following)):
        last = i + 1 == len(levels)
        h = math.inf if b == 1.0 else 0.5 * (_logit(b) - _logit(a))
        table[i, 0, :2] = clean_of(prediction, math.sqrt(a), math.sqrt(1 - a))
        table[i, 2, P] = 1.0
        table[i, 1, X] = math.sqrt((1 - b) / (1 - a))
        k = -math.sqrt(b) * math.expm1(-h)
        ends_low = last and lower_order_final and len(levels) < 15
        extrapolation = 0.0 if ends_low or before == 0.0 or h in (0.0, math.inf) else h / (2 * before)
        table[i, 1, P] = k * (1 + extrapolation)
        table[i, 1, H1] = -k * extrapolation
        before = h
    return _schedule(timesteps, table)


def euler(
    abar: np.ndarray,
    timesteps: Sequence[float] | np.ndarray,
    *,
    prediction: str = "eps",
    clip: float = math.inf,
    guidance: float = 1.0,
) -> Schedule:
    """Euler's method on the probability-flow ODE in sigma space (Karras et al. 2022, arXiv 2206.00364,
    algorithm 2 without churn). The state is x / alpha, so that it is the clean image plus sigma noise.

        x' = x + (sigma' - sigma) (x - p) / sigma

    The second output is the next model input, x' / sqrt(sigma'^2 + 1). Fractional timesteps interpolate
    sigma. Raises ValueError for an unknown prediction.
    """
    known = np.sqrt((1 - abar) / abar)
    sigmas = np.append(np.interp(np.asarray(timesteps, dtype=np.float64), np.arange(len(abar)), known), 0.0)
    table = _table(len(sigmas) - 1, clip, guidance)
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        # clean_of maps the variance-preserving state x / sqrt(sigma^2 + 1).
        seen = 1 / math.sqrt(sigma**2 + 1)
        from_seen, from_model = clean_of(prediction, seen, sigma * seen)
        table[i, 0, :2] = from_seen * seen, from_model
        rate = (lower - sigma) / sigma
        table[i, 1, [X, P]] = 1 + rate, -rate
        table[i, 2] = table[i, 1] / math.sqrt(lower**2 + 1)
    return _schedule(timesteps, table, prior=math.sqrt(sigmas[0] ** 2 + 1))


def flow_euler(
    sigmas: Sequence[float] | np.ndarray,
    *,
    train_steps: int = 1000,
    clip: float = math.inf,
    guidance: float = 1.0,
) -> Schedule:
    """Euler's method for flow matching (Lipman et al. 2022, arXiv 2210.02747): the state is (1 - sigma) data
    + sigma noise, the model gives its velocity noise - data, and

        x' = x + (sigma' - sigma) m

    `sigmas` (steps,) descend from 1 and the last step reaches 0; the model is told sigma * train_steps. p is
    the clean image x - sigma m, which a clip bound turns the step towards: x' = x + (sigma' - sigma) (x - p)
    / sigma.
    """
    levels = np.append(np.asarray(sigmas, dtype=np.float64), 0.0)
    table = _table(len(levels) - 1, clip, guidance)
    for i, (sigma, lower) in enumerate(pairwise(levels)):
        table[i, 0, :2] = 1.0, -sigma
        if math.isinf(clip):
            table[i, 1, [X, M]] = 1.0, lower - sigma
        else:
            table[i, 1, [X, P]] = lower / sigma, 1 - lower / sigma
    return _schedule(levels[:-1] * train_steps, table)


def _table(steps: int, clip: float, guidance: float) -> np.ndarray:
    if not clip > 0:
        raise ValueError(f"clip: got {clip}, wants a positive bound, or inf for none")
    table = np.zeros((steps, 4, 8))
    table[:, 0, 2:4] = clip, guidance
    return table


def _schedule(timesteps: Sequence[float] | np.ndarray, table: np.ndarray, prior: float = 1.0) -> Schedule:
    return Schedule(
        torch.tensor(np.array(timesteps), dtype=torch.float32),
        torch.tensor(table, dtype=torch.float32),
        prior,
    )


def _levels(
    abar: np.ndarray, timesteps: Sequence[int] | np.ndarray, final: float = 1.0
) -> tuple[list[float], list[float]]:
    """abar at each step, and at the step after it. Checks the timesteps."""
    times = np.asarray(timesteps)
    if times.ndim != 1 or times.size == 0 or not np.issubdtype(times.dtype, np.integer):
        raise ValueError(f"timesteps: got {times.dtype} of shape {times.shape}, wants a list of integers")
    if times.max() >= len(abar) or times.min() < 0 or (np.diff(times) > 0).any():
        raise ValueError(f"timesteps: got {times.tolist()}, wants them to fall within {len(abar) - 1} to 0")
    levels = [float(level) for level in abar[times]]
    return levels, [*levels[1:], final]


def _logit(abar: float) -> float:
    return math.log(abar) - math.log1p(-abar)


def clean_of(prediction: str, alpha: float, s: float) -> np.ndarray:
    """(A, B) with A x + B m the clean image."""
    return _of(prediction, eps=(1 / alpha, -s / alpha), v=(alpha, -s), x0=(0.0, 1.0))


def noise_of(prediction: str, alpha: float, s: float) -> np.ndarray:
    """(A, B) with A x + B m the noise."""
    return _of(prediction, eps=(0.0, 1.0), v=(s, alpha), x0=(1 / s, -alpha / s))


def _of(prediction: str, **known: tuple[float, float]) -> np.ndarray:
    if prediction not in known:
        raise ValueError(f"prediction: got {prediction!r}, wants one of {', '.join(map(repr, known))}")
    return np.array(known[prediction])

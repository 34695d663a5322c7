"""Fused steps of diffusers' schedulers that look at one model output: Euler ancestral, EDM Euler, LCM, TCD, consistency
models, unCLIP.

Each function has the arguments and results of the host's `step`; its row is the host's formula, in float64.
Papers: Karras et al. 2022 (arXiv 2206.00364), Luo et al. 2023 (LCM, 2310.04378), Zheng et al. 2024 (TCD, 2402.19159),
Song et al. 2023 (consistency models, 2303.01469), Ramesh et al. 2022 (unCLIP, 2204.06125).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from torch import Tensor

from hexad.integrations.diffusers_rows import (
    PREDICTIONS,
    apply,
    clean_of_sigma,
    clip_of,
    coefficients,
    drawn,
    host_step,
    level_at,
    result,
)
from hexad.sampling.schedules import M, P, X, Z, clean_of, noise_of


def euler_ancestral_step(
    self: Any,
    model_output: Tensor,
    timestep: float | Tensor,
    sample: Tensor,
    generator: Any = None,
    return_dict: bool = True,
) -> Any:
    if _is_index(timestep) or not self.is_scale_input_called:
        return type(self).step(self, model_output, timestep, sample, generator, return_dict)
    sigma, lower = _sigmas(self, timestep)
    noise = drawn(model_output, generator)
    x, clean = apply(
        _ancestral_row(sigma, lower, self.config.prediction_type), sample, model_output, outputs=2, noise=noise
    )
    self._step_index += 1
    return result(self, return_dict, x.to(model_output.dtype), clean)


@lru_cache(maxsize=4096)
def _ancestral_row(sigma: float, lower: float, prediction: str) -> Tensor:
    up = lower * math.sqrt(max(sigma**2 - lower**2, 0.0)) / sigma
    rate = (math.sqrt(max(lower**2 - up**2, 0.0)) - sigma) / sigma
    return coefficients(clean_of_sigma(prediction, sigma), {X: 1 + rate, P: -rate, Z: up}, {P: 1.0})


def edm_euler_step(
    self: Any,
    model_output: Tensor,
    timestep: float | Tensor,
    sample: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    generator: Any = None,
    return_dict: bool = True,
    pred_original_sample: Tensor | None = None,
) -> Any:
    if s_churn > 0 or pred_original_sample is not None or _is_index(timestep) or not self.is_scale_input_called:
        asked = "s_churn" if s_churn > 0 else "pred_original_sample" if pred_original_sample is not None else None
        own = host_step(self, asked) if asked else type(self).step.__get__(self)
        more = (s_churn, s_tmin, s_tmax, s_noise, generator, return_dict, pred_original_sample)
        return own(model_output, timestep, sample, *more)
    sigma, lower = _sigmas(self, timestep)
    row = _edm_row(sigma, lower, float(self.config.sigma_data), self.config.prediction_type)
    x, clean = apply(row, sample, model_output, outputs=2)
    self._step_index += 1
    return result(self, return_dict, x.to(model_output.dtype), clean)


@lru_cache(maxsize=4096)
def _edm_row(sigma: float, lower: float, data: float, prediction: str) -> Tensor:
    out = sigma * data / math.hypot(sigma, data)
    rate = (lower - sigma) / sigma
    clean = data**2 / (sigma**2 + data**2), out if PREDICTIONS[prediction] == "eps" else -out
    return coefficients(clean, {X: 1 + rate, P: -rate}, {P: 1.0})


def lcm_step(
    self: Any, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
) -> Any:
    i, following = _place(self, timestep, timestep)
    after = float(self.alphas_cumprod[following] if following >= 0 else self.final_alpha_cumprod)
    last = i == self.num_inference_steps - 1
    skip, out = self.get_scalings_for_boundary_condition_discrete(int(timestep))
    config = self.config
    row = _lcm_row(
        level_at(self, int(timestep)), after, float(skip), float(out), config.prediction_type, clip_of(config), last
    )
    noise = None if last else drawn(model_output, generator)
    x, denoised = apply(row, sample, model_output, outputs=2, noise=noise)
    self._step_index += 1
    return result(self, return_dict, x.to(sample.dtype), denoised.to(sample.dtype))


@lru_cache(maxsize=4096)
def _lcm_row(level: float, after: float, skip: float, out: float, prediction: str, clip: float, last: bool) -> Tensor:
    clean = clean_of(PREDICTIONS[prediction], math.sqrt(level), math.sqrt(1 - level))
    alpha, noise = (1.0, 0.0) if last else (math.sqrt(after), math.sqrt(1 - after))
    return coefficients(clean, {X: alpha * skip, P: alpha * out, Z: noise}, {X: skip, P: out}, clip=clip)


def tcd_step(
    self: Any,
    model_output: Tensor,
    timestep: Any,
    sample: Tensor,
    eta: float = 0.3,
    generator: Any = None,
    return_dict: bool = True,
) -> Any:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: got {eta}, wants 0 to 1")
    i, following = _place(self, timestep, 0)
    after = float(self.alphas_cumprod[following] if following >= 0 else self.final_alpha_cumprod)
    between = float(self.alphas_cumprod[math.floor((1 - eta) * following)])
    noisy = eta > 0 and i != self.num_inference_steps - 1
    row = _tcd_row(level_at(self, int(timestep)), between, after, self.config.prediction_type, noisy)
    noise = drawn(model_output, generator) if noisy else None
    x, less_noisy = apply(row, sample, model_output, outputs=2, noise=noise)
    self._step_index += 1
    return result(self, return_dict, x.to(sample.dtype), less_noisy.to(sample.dtype))


@lru_cache(maxsize=4096)
def _tcd_row(level: float, between: float, after: float, prediction: str, noisy: bool) -> Tensor:
    kind, alpha, s = PREDICTIONS[prediction], math.sqrt(level), math.sqrt(1 - level)
    from_x, from_m = math.sqrt(1 - between) * noise_of(kind, alpha, s)
    there = {X: from_x, M: from_m, P: math.sqrt(between)}
    ratio = after / between if noisy else 1.0
    following = {column: math.sqrt(ratio) * value for column, value in there.items()}
    return coefficients(clean_of(kind, alpha, s), following | {Z: math.sqrt(max(1 - ratio, 0.0))}, there)


def consistency_step(
    self: Any,
    model_output: Tensor,
    timestep: float | Tensor,
    sample: Tensor,
    generator: Any = None,
    return_dict: bool = True,
) -> Any:
    if _is_index(timestep) or not self.is_scale_input_called:
        return type(self).step(self, model_output, timestep, sample, generator, return_dict)
    if self.step_index is None:
        self._init_step_index(timestep)
    config, i = self.config, self.step_index
    sigma = self.sigmas[i]
    lower = float(self.sigmas[i + 1] if i + 1 < config.num_train_timesteps else self.sigmas[-1])
    lower = min(max(lower, config.sigma_min), config.sigma_max)
    skip, out = self.get_scalings_for_boundary_condition(sigma)
    several = len(self.timesteps) > 1
    amount = config.s_noise * math.sqrt(lower**2 - config.sigma_min**2) if several else 0.0
    bound = 1.0 if config.clip_denoised else math.inf
    row = coefficients((float(skip), float(out)), {P: 1.0, Z: amount}, clip=bound)
    noise = drawn(model_output, generator) if several else None
    (x,) = apply(row, sample, model_output, outputs=1, noise=noise)
    self._step_index += 1
    return result(self, return_dict, x.to(sample.dtype))


def unclip_step(
    self: Any,
    model_output: Tensor,
    timestep: Any,
    sample: Tensor,
    prev_timestep: Any = None,
    generator: Any = None,
    return_dict: bool = True,
) -> Any:
    t = int(timestep)
    before = t - 1 if prev_timestep is None else int(prev_timestep)
    level = level_at(self, t)
    after = float(self.alphas_cumprod[before]) if before >= 0 else 1.0
    # 1 - abar / abar' would cancel.
    beta = float(self.betas[t]) if before == t - 1 else 1 - level / after
    kind, clip = PREDICTIONS[self.config.prediction_type], clip_of(self.config)
    mean = {
        P: math.sqrt(after) * beta / (1 - level),
        X: math.sqrt(1 - beta) * (1 - after) / (1 - level),
    }
    if t > 0:
        mean[Z] = float(self._get_variance(t, prev_timestep=before))
    row = coefficients(clean_of(kind, math.sqrt(level), math.sqrt(1 - level)), mean, {P: 1.0}, clip=clip)
    noise = drawn(model_output, generator) if t > 0 else None
    x, clean = apply(row, sample, model_output, outputs=2, noise=noise)
    return result(self, return_dict, x.to(sample.dtype), clean.to(sample.dtype))


def _is_index(timestep: Any) -> bool:
    """An integer where a time is wanted: the host's own step says what is wrong."""
    return isinstance(timestep, int) or (
        isinstance(timestep, Tensor) and not timestep.dtype.is_floating_point and timestep.device.type == "cpu"
    )


def _sigmas(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """The noise level of this step, and of the next."""
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    i = scheduler.step_index
    return float(scheduler.sigmas[i]), float(scheduler.sigmas[i + 1])


def _place(scheduler: Any, timestep: Any, beyond: Any) -> tuple[int, int]:
    """This step's number, and the timestep after it, `beyond` after the last."""
    if scheduler.num_inference_steps is None:
        raise ValueError("timesteps: none set, wants a call of set_timesteps first")
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    i = scheduler.step_index
    return i, int(scheduler.timesteps[i + 1] if i + 1 < len(scheduler.timesteps) else beyond)

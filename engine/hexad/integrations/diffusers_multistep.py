"""Fused steps of diffusers' schedulers that keep earlier outputs: Heun, DEIS, UniPC.

Each function has the arguments and results of the host's `step`, and leaves the host's state as the host would. With
sigma = s / alpha, lambda = -ln sigma and a prime for the next level, everything is computed in float64.
Papers: Karras et al. 2022 (arXiv 2206.00364), Zhang & Chen 2022 (DEIS, 2204.13902), Zhao et al. 2023 (UniPC,
2302.04867).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from hexad.integrations.diffusers_rows import PREDICTIONS, apply, clean_of_sigma, clip_of, coefficients, result
from hexad.sampling.schedules import H1, H2, H3, LAST, M, P, X, clean_of, noise_of

HISTORY = (H1, H2, H3)


def heun_step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
    if self.step_index is None:
        self._init_step_index(timestep)
    i, config = self.step_index, self.config
    if self.state_in_first_order:
        sigma, lower = self.sigmas[i], self.sigmas[i + 1]
        row = _heun_first(float(sigma), float(lower), config.prediction_type, clip_of(config))
        x, clean, slope = apply(row, sample, model_output, outputs=3)
        self.prev_derivative, self.dt, self.sample = slope, lower - sigma, sample
    else:
        row = _heun_second(float(self.dt), float(self.sigmas[i]), config.prediction_type, clip_of(config))
        x, clean = apply(row, sample, model_output, outputs=2, history=(self.prev_derivative,), last=self.sample)
        self.prev_derivative = self.dt = self.sample = None
    self._step_index += 1
    return result(self, return_dict, x.to(sample.dtype), clean.to(sample.dtype))


@lru_cache(maxsize=4096)
def _heun_first(sigma: float, lower: float, prediction: str, clip: float) -> Tensor:
    rate = (lower - sigma) / sigma
    slope = {X: 1 / sigma, P: -1 / sigma}
    return coefficients(clean_of_sigma(prediction, sigma), {X: 1 + rate, P: -rate}, {P: 1.0}, slope, clip=clip)


@lru_cache(maxsize=4096)
def _heun_second(dt: float, lower: float, prediction: str, clip: float) -> Tensor:
    half = dt / 2
    following = {LAST: 1.0, H1: half, X: half / lower, P: -half / lower}
    return coefficients(clean_of_sigma(prediction, lower), following, {P: 1.0}, clip=clip)


def deis_step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
    i, steps = _begin(self, timestep)
    order = min(self.config.solver_order, self.lower_order_nums + 1)
    if self.config.lower_order_final and steps < 15:
        order = min(order, steps - i)
    sigmas = tuple(float(self.sigmas[j]) for j in range(i + 1, i - order, -1))
    history = self.model_outputs[::-1][: order - 1]
    x, noise = apply(_deis_row(sigmas, self.config.prediction_type), sample, model_output, outputs=2, history=history)
    self.model_outputs = [*self.model_outputs[1:], noise]
    self.lower_order_nums = min(self.lower_order_nums + 1, self.config.solver_order)
    self._step_index += 1
    return result(self, return_dict, x.to(sample.dtype))


@lru_cache(maxsize=4096)
def _deis_row(sigmas: tuple[float, ...], prediction: str) -> Tensor:
    """x' = alpha' (x / alpha + sum_j c_j eps_j): c_j the integral, from sigma to sigma', of Lagrange's polynomial in
    ln sigma that is 1 at level j and 0 at the others."""
    lower, *known = sigmas
    logs = [math.log(sigma) for sigma in known]
    alpha, alpha_next = (1 / math.sqrt(sigma**2 + 1) for sigma in (known[0], lower))
    from_x, from_m = noise_of(PREDICTIONS[prediction], alpha, known[0] * alpha)

    def integral(j: int) -> float:
        others = [log for k, log in enumerate(logs) if k != j]
        poly = np.poly(others) / np.prod([logs[j] - log for log in others]) if others else np.ones(1)
        return _moment(poly, lower) - _moment(poly, known[0])

    weights = [alpha_next * integral(j) for j in range(len(known))]
    following = {X: alpha_next / alpha + weights[0] * from_x, M: weights[0] * from_m}
    following |= dict(zip(HISTORY, weights[1:]))
    return coefficients((0.0, 0.0), following, {X: from_x, M: from_m})


def _moment(poly: np.ndarray, sigma: float) -> float:
    """The antiderivative of poly(ln sigma), highest power first: sigma (p - p' + p'' - ...) at ln sigma."""
    if sigma == 0:
        return 0.0
    total, sign = 0.0, 1.0
    while len(poly):
        total += sign * float(np.polyval(poly, math.log(sigma)))
        poly, sign = np.polyder(poly) if len(poly) > 1 else poly[:0], -sign
    return sigma * total


def unipc_step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
    """The corrector of the step before and this step's predictor, in one pass: the corrector's result is linear in
    what the predictor reads."""
    i, steps = _begin(self, timestep)
    config = self.config
    corrects = i > 0 and i - 1 not in self.disable_corrector and self.last_sample is not None
    corrector = self.this_order if corrects else 0
    order = min(config.solver_order, steps - i) if config.lower_order_final else config.solver_order
    order = min(order, self.lower_order_nums + 1)
    reach = max(order, corrector + 1)
    sigmas = tuple(float(self.sigmas[j]) for j in range(i + 1, i - reach, -1))
    row = _unipc_row(sigmas, order, corrector, config.prediction_type, config.solver_type)
    history = self.model_outputs[::-1][: max(order - 1, corrector)]
    x, corrected, clean = apply(
        row, sample, model_output, outputs=3, history=history, last=self.last_sample if corrects else None
    )
    self.model_outputs = [*self.model_outputs[1:], clean]
    self.timestep_list = [*self.timestep_list[1:], timestep]
    self.last_sample, self.this_order = corrected, order
    self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
    self._step_index += 1
    return result(self, return_dict, x.to(sample.dtype))


@lru_cache(maxsize=4096)
def _unipc_row(sigmas: tuple[float, ...], order: int, corrector: int, prediction: str, solver: str) -> Tensor:
    alpha = 1 / math.sqrt(sigmas[1] ** 2 + 1)
    clean = clean_of(PREDICTIONS[prediction], alpha, sigmas[1] * alpha)
    corrected = {X: 1.0}
    if corrector:
        kept, now, *weights = _unified(sigmas[1:], corrector, solver, True)
        corrected = {LAST: kept, P: now} | dict(zip(HISTORY, weights))
    kept, now, *weights = _unified(sigmas, order, solver, False)
    following = {column: kept * value for column, value in corrected.items()}
    for column, value in zip((P, *HISTORY), (now, *weights)):
        following[column] = following.get(column, 0.0) + value
    return coefficients(clean, following, corrected, {P: 1.0})


def _unified(sigmas: tuple[float, ...], order: int, solver: str, corrects: bool) -> tuple[float, ...]:
    """UniP's weights, from level sigmas[1] to sigmas[0]: of the state, of p there, of p at sigmas[2], sigmas[3], ...
    UniC's (`corrects`) start from the state before the step: of it, of p at sigmas[0], at sigmas[1], sigmas[2], ..."""
    lower, sigma = sigmas[:2]
    alpha = 1 / math.sqrt(lower**2 + 1)
    kept = lower * alpha * math.sqrt(1 + 1 / sigma**2)
    h = math.log(sigma / lower) if lower else math.inf
    first = math.expm1(-h)
    if order == 1 and not corrects:
        return kept, -alpha * first
    scale = -h if solver == "bh1" else first
    ratios = [math.log(sigma / s) / h for s in sigmas[2 : order + 1]] + [1.0]
    count = order if corrects else order - 1
    right, phi, factorial = [], first / -h - 1, 1
    for k in range(1, order + 1):
        right.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    if order == (1 if corrects else 2):
        rho = np.array([0.5])
    else:
        powers = np.array([[r**k for r in ratios[:count]] for k in range(count)])
        rho = np.linalg.solve(powers, np.array(right[:count]))
    terms = [-alpha * scale * value / ratio for value, ratio in zip(rho, ratios)]
    here = -alpha * first - sum(terms)
    if corrects:
        return kept, terms[-1], here, *terms[:-1]
    return kept, here, *terms


def _begin(scheduler: Any, timestep: Any) -> tuple[int, int]:
    """This step's number and how many there are."""
    if scheduler.num_inference_steps is None:
        raise ValueError("timesteps: none set, wants a call of set_timesteps first")
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)
    return scheduler.step_index, len(scheduler.timesteps)

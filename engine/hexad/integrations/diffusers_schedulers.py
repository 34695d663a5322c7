"""The arithmetic of diffusers' schedulers as one `hexad_kernels.step` a step.

A scheduler keeps its class, its configuration and its state; only its `step` is replaced, on the instance. The
coefficients are those of `hexad.sampling.schedules`, a row for each pair of noise levels, computed in float64 when
first met and kept. The state is float32 inside and returns in the host's dtype.

Each function below has the arguments and results of the host's `step`, for one scheduler class. What a call asks
for that the table does not hold goes to the host's own step, with one warning.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hexad.sampling import schedules
from hexad_kernels import step

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "original_sample": "x0", "v_prediction": "v"}


def refusal(scheduler: Any) -> str | None:
    """Why this scheduler keeps its own step; None if hexad serves it."""
    name, config = type(scheduler).__name__, scheduler.config
    if name not in STEPS or not type(scheduler).__module__.startswith("diffusers."):
        return f"hexad has no fused step for {name}"
    if "prediction_type" in config and config.prediction_type not in PREDICTIONS:
        return f"prediction_type={config.prediction_type!r}"
    for option, wanted in _WANTED.items():
        if option in config and config[option] not in wanted:
            return f"{option}={config[option]!r}"
    if (
        name in ("DDIMScheduler", "DDPMScheduler")
        and config.prediction_type == "epsilon"
        and config.rescale_betas_zero_snr
    ):
        return "rescale_betas_zero_snr=True with prediction_type='epsilon' divides by zero"
    return None


# The values of an option that the tables cover.
_WANTED: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large"),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "solver_order": (1, 2),
    "use_flow_sigmas": (False, None),
    "stochastic_sampling": (False,),
}

_warned: set[str] = set()


def _host(scheduler: Any, why: str) -> Callable[..., Any]:
    """The host's own step, for one call."""
    text = f"{type(scheduler).__name__}.step: {why} is not fused; the host's own step serves these calls"
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=3)
    return type(scheduler).step.__get__(scheduler)


def _apply(
    row: Tensor,
    x: Tensor,
    model_output: Tensor,
    *,
    outputs: int,
    noise: Tensor | None = None,
    last: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Row (1, 4, 8) applied to the state, in float32 (float64 for float64)."""
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    if model_output.dtype not in (state, torch.bfloat16):
        model_output = model_output.to(state)
    return step(
        row.to(x.device, state),
        0,
        x.to(state),
        model_output,
        history=() if last is None else (last.to(state),),
        noise=None if noise is None else noise.to(state),
        outputs=outputs,
    )


def _drawn(like: Tensor, generator: Any) -> Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _result(scheduler: Any, return_dict: bool, *values: Tensor) -> Any:
    """The host's result: a tuple, or its own output class."""
    if not return_dict:
        return values
    host = vars(sys.modules[type(scheduler).__module__])
    kind = host.get(type(scheduler).__name__ + "Output") or host["SchedulerOutput"]
    return kind(**dict(zip(("prev_sample", "pred_original_sample"), values)))


def _clip(config: Any) -> float:
    return float(config.clip_sample_range) if config.clip_sample else math.inf


def _level(scheduler: Any, t: int) -> float:
    """abar at t, a hair above 0 where zero terminal SNR makes it 0: the same float32 coefficients, no division by 0."""
    return max(float(scheduler.alphas_cumprod[t]), 1e-38)


def _with_clean(plan: schedules.Schedule, row: int = 0) -> Tensor:
    """One row (1, 4, 8) whose second output is the clean image."""
    table = plan.table[row : row + 1].clone()
    table[0, 2] = 0.0
    table[0, 2, schedules.P] = 1.0
    return table


def ddim_step(
    self: Any,
    model_output: Tensor,
    timestep: int,
    sample: Tensor,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    generator: Any = None,
    variance_noise: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    clip = _clip(self.config)
    if use_clipped_model_output and clip < math.inf:
        own = _host(self, "use_clipped_model_output")
        return own(model_output, timestep, sample, eta, True, generator, variance_noise, return_dict)
    if self.num_inference_steps is None:
        raise ValueError("timesteps: none set, wants a call of set_timesteps first")
    t = int(timestep)
    before = t - self.config.num_train_timesteps // self.num_inference_steps
    noise = None
    if eta > 0:
        if variance_noise is not None and generator is not None:
            raise ValueError("variance_noise: got one and a generator too, wants one of the two")
        noise = _drawn(model_output, generator) if variance_noise is None else variance_noise
    final = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
    row = _ddim_row(_level(self, t), float(final), self.config.prediction_type, clip, eta)
    x, clean = _apply(row, sample, model_output, outputs=2, noise=noise)
    return _result(self, return_dict, x.to(sample.dtype), clean.to(sample.dtype))


@lru_cache(maxsize=4096)
def _ddim_row(level: float, following: float, prediction: str, clip: float, eta: float) -> Tensor:
    plan = schedules.ddim(
        np.array([level]), [0], prediction=PREDICTIONS[prediction], clip=clip, eta=eta, final=following
    )
    return _with_clean(plan)


def ddpm_step(
    self: Any, model_output: Tensor, timestep: int, sample: Tensor, generator: Any = None, return_dict: bool = True
) -> Any:
    t, before = int(timestep), int(self.previous_timestep(timestep))
    following = float(self.alphas_cumprod[before]) if before >= 0 else 1.0
    # The host's variance_type may be set after construction.
    row = _ddpm_row(
        _level(self, t), following, self.config.prediction_type, _clip(self.config), self.variance_type, t > 0
    )
    noise = _drawn(model_output, generator) if t > 0 else None
    x, clean = _apply(row, sample, model_output, outputs=2, noise=noise)
    return _result(self, return_dict, x.to(sample.dtype), clean.to(sample.dtype))


@lru_cache(maxsize=4096)
def _ddpm_row(level: float, following: float, prediction: str, clip: float, variance: str, noisy: bool) -> Tensor:
    # Two levels, as the last of a plan adds no noise.
    plan = schedules.ddpm(
        np.array([following, level]) if following < 1 else np.array([level]),
        [1, 0] if following < 1 else [0],
        prediction=PREDICTIONS[prediction],
        clip=clip,
        variance="large" if variance == "fixed_large" else "small",
    )
    row = _with_clean(plan)
    if noisy and following == 1:
        # A host schedule that ends above timestep 0 ends with noise; its small variance is floored at 1e-20.
        row[0, 1, schedules.Z] = math.sqrt(1 - level) if variance == "fixed_large" else 1e-10
    return row


def euler_step(
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
) -> Any:
    if s_churn > 0 or isinstance(timestep, int) or not self.is_scale_input_called:
        own = type(self).step.__get__(self) if s_churn <= 0 else _host(self, "s_churn")
        return own(model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict)
    if self.step_index is None:
        self._init_step_index(timestep)
    i = self.step_index
    row = _euler_row(float(self.sigmas[i]), float(self.sigmas[i + 1]), self.config.prediction_type)
    x, clean = _apply(row, sample, model_output, outputs=2)
    self._step_index += 1
    return _result(self, return_dict, x.to(model_output.dtype), clean)


@lru_cache(maxsize=4096)
def _euler_row(sigma: float, lower: float, prediction: str) -> Tensor:
    abar = [1 / (1 + lower**2), 1 / (1 + sigma**2)]
    levels, times = (abar, [1.0, 0.0]) if lower else (abar[1:], [0.0])
    return _with_clean(schedules.euler(np.array(levels), times, prediction=PREDICTIONS[prediction]))


def flow_euler_step(
    self: Any,
    model_output: Tensor,
    timestep: float | Tensor,
    sample: Tensor,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = float("inf"),
    s_noise: float = 1.0,
    generator: Any = None,
    per_token_timesteps: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    if per_token_timesteps is not None or isinstance(timestep, int):
        own = _host(self, "per_token_timesteps") if per_token_timesteps is not None else type(self).step.__get__(self)
        return own(
            model_output,
            timestep,
            sample,
            s_churn,
            s_tmin,
            s_tmax,
            s_noise,
            generator,
            per_token_timesteps,
            return_dict,
        )
    if self.step_index is None:
        self._init_step_index(timestep)
    i = self.step_index
    (x,) = _apply(_flow_row(float(self.sigmas[i]), float(self.sigmas[i + 1])), sample, model_output, outputs=1)
    self._step_index += 1
    return _result(self, return_dict, x.to(model_output.dtype))


@lru_cache(maxsize=4096)
def _flow_row(sigma: float, lower: float) -> Tensor:
    return schedules.flow_euler([sigma, lower]).table[:1]


def dpmpp_2m_step(
    self: Any,
    model_output: Tensor,
    timestep: int | Tensor,
    sample: Tensor,
    generator: Any = None,
    variance_noise: Tensor | None = None,
    return_dict: bool = True,
) -> Any:
    if self.num_inference_steps is None:
        raise ValueError("timesteps: none set, wants a call of set_timesteps first")
    if self.step_index is None:
        self._init_step_index(timestep)
    config, i, steps = self.config, self.step_index, len(self.timesteps)
    ends_low = config.euler_at_final or config.final_sigmas_type == "zero" or (config.lower_order_final and steps < 15)
    first = config.solver_order == 1 or self.lower_order_nums < 1 or (i == steps - 1 and ends_low)
    row = _dpmpp_row(
        None if first else float(self.sigmas[i - 1]),
        float(self.sigmas[i]),
        float(self.sigmas[i + 1]),
        config.prediction_type,
    )
    x, clean = _apply(row, sample, model_output, outputs=2, last=None if first else self.model_outputs[-1])
    self.model_outputs = [*self.model_outputs[1:], clean]
    self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
    self._step_index += 1
    return _result(self, return_dict, x.to(model_output.dtype))


@lru_cache(maxsize=4096)
def _dpmpp_row(before: float | None, sigma: float, lower: float, prediction: str) -> Tensor:
    sigmas = [s for s in (lower, sigma, before) if s]  # clean to noisy, without the 0
    plan = schedules.dpmpp_2m(
        np.array([1 / (1 + s**2) for s in sigmas]),
        list(range(len(sigmas)))[::-1],
        prediction=PREDICTIONS[prediction],
        lower_order_final=False,
    )
    return _with_clean(plan, 0 if before is None else 1)


STEPS: dict[str, Callable[..., Any]] = {
    "DDIMScheduler": ddim_step,
    "DDPMScheduler": ddpm_step,
    "DPMSolverMultistepScheduler": dpmpp_2m_step,
    "EulerDiscreteScheduler": euler_step,
    "FlowMatchEulerDiscreteScheduler": flow_euler_step,
}

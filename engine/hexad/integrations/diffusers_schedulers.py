"""The arithmetic of diffusers' schedulers as one `hexad_kernels.step` a step.

A scheduler keeps its class, its configuration and its state; only its `step` is replaced, on the instance. The
coefficients are those of `hexad.sampling.schedules`, a row for each pair of noise levels, computed in float64 when
first met and kept. The state is float32 inside and returns in the host's dtype.

Each function below has the arguments and results of the host's `step`, for one scheduler class; those of other
classes stand in diffusers_onestep.py and diffusers_multistep.py. What a call asks for that the table does not hold goes
to the host's own step, with one warning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from hexad.integrations import diffusers_multistep as multistep
from hexad.integrations import diffusers_onestep as onestep
from hexad.integrations.diffusers_rows import PREDICTIONS, apply, clip_of, drawn, host_step, level_at, result
from hexad.sampling import schedules


def refusal(scheduler: Any) -> str | None:
    """Why this scheduler keeps its own step; None if hexad serves it."""
    name, config = type(scheduler).__name__, scheduler.config
    if name not in STEPS or not type(scheduler).__module__.startswith("diffusers."):
        return f"hexad has no fused step for {name}"
    if "prediction_type" in config and config.prediction_type not in PREDICTIONS:
        return f"prediction_type={config.prediction_type!r}"
    for option, wanted in (_WANTED | _WANTED_OF.get(name, {})).items():
        if option in config and config[option] not in wanted:
            return f"{option}={config[option]!r}"
    if name == "UniPCMultistepScheduler" and config.final_sigmas_type == "zero" and not config.lower_order_final:
        return "final_sigmas_type='zero' with lower_order_final=False divides by zero"
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
_WANTED_OF: dict[str, dict[str, tuple[Any, ...]]] = {
    "DEISMultistepScheduler": {"algorithm_type": ("deis",), "solver_type": ("logrho",), "solver_order": (1, 2, 3)},
    "UniPCMultistepScheduler": {
        "solver_type": ("bh1", "bh2"),
        "solver_order": (1, 2, 3),
        "predict_x0": (True,),
        "solver_p": (None,),
    },
    "EulerAncestralDiscreteScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "EDMEulerScheduler": {"prediction_type": ("epsilon", "v_prediction")},
    "UnCLIPScheduler": {"prediction_type": ("epsilon", "sample")},
}


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
    clip = clip_of(self.config)
    if use_clipped_model_output and clip < math.inf:
        own = host_step(self, "use_clipped_model_output")
        return own(model_output, timestep, sample, eta, True, generator, variance_noise, return_dict)
    if self.num_inference_steps is None:
        raise ValueError("timesteps: none set, wants a call of set_timesteps first")
    t = int(timestep)
    before = t - self.config.num_train_timesteps // self.num_inference_steps
    noise = None
    if eta > 0:
        if variance_noise is not None and generator is not None:
            raise ValueError("variance_noise: got one and a generator too, wants one of the two")
        noise = drawn(model_output, generator) if variance_noise is None else variance_noise
    final = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
    row = _ddim_row(level_at(self, t), float(final), self.config.prediction_type, clip, eta)
    x, clean = apply(row, sample, model_output, outputs=2, noise=noise)
    return result(self, return_dict, x.to(sample.dtype), clean.to(sample.dtype))


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
        level_at(self, t), following, self.config.prediction_type, clip_of(self.config), self.variance_type, t > 0
    )
    noise = drawn(model_output, generator) if t > 0 else None
    x, clean = apply(row, sample, model_output, outputs=2, noise=noise)
    return result(self, return_dict, x.to(sample.dtype), clean.to(sample.dtype))


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
        own = type(self).step.__get__(self) if s_churn <= 0 else host_step(self, "s_churn")
        return own(model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict)
    if self.step_index is None:
        self._init_step_index(timestep)
    i = self.step_index
    row = _euler_row(float(self.sigmas[i]), float(self.sigmas[i + 1]), self.config.prediction_type)
    x, clean = apply(row, sample, model_output, outputs=2)
    self._step_index += 1
    return result(self, return_dict, x.to(model_output.dtype), clean)


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
        tokens = per_token_timesteps is not None
        own = host_step(self, "per_token_timesteps") if tokens else type(self).step.__get__(self)
        more = (s_churn, s_tmin, s_tmax, s_noise, generator, per_token_timesteps, return_dict)
        return own(model_output, timestep, sample, *more)
    if self.step_index is None:
        self._init_step_index(timestep)
    i = self.step_index
    (x,) = apply(_flow_row(float(self.sigmas[i]), float(self.sigmas[i + 1])), sample, model_output, outputs=1)
    self._step_index += 1
    return result(self, return_dict, x.to(model_output.dtype))


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
    x, clean = apply(row, sample, model_output, outputs=2, history=() if first else (self.model_outputs[-1],))
    self.model_outputs = [*self.model_outputs[1:], clean]
    self.lower_order_nums = min(self.lower_order_nums + 1, config.solver_order)
    self._step_index += 1
    return result(self, return_dict, x.to(model_output.dtype))


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
    "CMStochasticIterativeScheduler": onestep.consistency_step,
    "DDIMScheduler": ddim_step,
    "DDPMScheduler": ddpm_step,
    "DEISMultistepScheduler": multistep.deis_step,
    "DPMSolverMultistepScheduler": dpmpp_2m_step,
    "EDMEulerScheduler": onestep.edm_euler_step,
    "EulerAncestralDiscreteScheduler": onestep.euler_ancestral_step,
    "EulerDiscreteScheduler": euler_step,
    "FlowMatchEulerDiscreteScheduler": flow_euler_step,
    "HeunDiscreteScheduler": multistep.heun_step,
    "LCMScheduler": onestep.lcm_step,
    "TCDScheduler": onestep.tcd_step,
    "UnCLIPScheduler": onestep.unclip_step,
    "UniPCMultistepScheduler": multistep.unipc_step,
}

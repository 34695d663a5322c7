"""What the fused steps of diffusers' schedulers share: a row of coefficients, its application, the host's results.

A row is one line (1, 4, 8) of the table that `hexad_kernels.step` reads (see `hexad.sampling.schedules`): how the clean
image p follows from the state x and the model's output m, and up to three outputs as sums over (x, m, p, h1, h2, h3,
last, z).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hexad_kernels import step

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "original_sample": "x0", "v_prediction": "v"}

warned: set[str] = set()


def host_step(scheduler: Any, why: str) -> Callable[..., Any]:
    """The host's own step, for one call."""
    text = f"{type(scheduler).__name__}.step: {why} is not fused; the host's own step serves these calls"
    if text not in warned:
        warned.add(text)
        warnings.warn(text, stacklevel=3)
    return type(scheduler).step.__get__(scheduler)


def apply(
    row: Tensor,
    x: Tensor,
    model_output: Tensor,
    *,
    outputs: int,
    noise: Tensor | None = None,
    history: Sequence[Tensor] = (),
    last: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """A row applied to the state, in float32 (float64 for float64)."""
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    if model_output.dtype not in (state, torch.bfloat16):
        model_output = model_output.to(state)
    return step(
        row.to(x.device, state),
        0,
        x.to(state),
        model_output,
        history=tuple(h.to(state) for h in history),
        last=None if last is None else last.to(state),
        noise=None if noise is None else noise.to(state),
        outputs=outputs,
    )


def drawn(like: Tensor, generator: Any) -> Tensor:
    from diffusers.utils.torch_utils import randn_tensor

    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def result(scheduler: Any, return_dict: bool, *values: Tensor) -> Any:
    """The host's result: a tuple, or its own output class."""
    if not return_dict:
        return values
    host = vars(sys.modules[type(scheduler).__module__])
    kind = host.get(type(scheduler).__name__ + "Output") or host["SchedulerOutput"]
    return kind(*values)


def clip_of(config: Any) -> float:
    return float(config.clip_sample_range) if config.clip_sample else math.inf


def level_at(scheduler: Any, t: int) -> float:
    """abar at t, a hair above 0 where zero terminal SNR makes it 0: the same float32 coefficients, no division by 0."""
    return max(float(scheduler.alphas_cumprod[t]), 1e-38)


def coefficients(clean: Any, *outputs: dict[int, float], clip: float = math.inf) -> Tensor:
    """clean: (A, B) with p = clip(A x + B m); outputs: column (schedules.X, M, P, ...) -> coefficient."""
    table = torch.zeros(1, 4, 8, dtype=torch.float64)
    table[0, 0, :4] = torch.tensor([*map(float, clean), clip, 1.0], dtype=torch.float64)
    for k, output in enumerate(outputs, 1):
        for column, value in output.items():
            table[0, k, column] = value
    return table.float()


def clean_of_sigma(prediction: str, sigma: float) -> tuple[float, float]:
    """(A, B) where the state is the clean image plus sigma noise, as the schedulers of Karras et al. keep it."""
    kind = PREDICTIONS[prediction]
    if kind == "eps":
        return 1.0, -sigma
    if kind == "v":
        return 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)
    return 0.0, 1.0

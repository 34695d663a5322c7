"""Which layers of a host's model hexad computes: known by what they compute, not by their class.

Each match runs the host's forward on a few rows and is taken only if hexad's gives the same. So a norm that adds 1 to
its weight, or an activation of whatever name, is told apart by numbers, and a layer that does something unheard of
stays the host's.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hexad_kernels as hk
from hexad.integrations import layers
from hexad.integrations.layers import LANES, Forward, State, is_linear, rows_of

ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
GATES = {"silu": "silu_gate", "gelu": "gelu_gate"}


def agrees(module: nn.Module, state: State, *inputs: Tensor) -> bool:
    """Whether hexad's forward of `module` gives what the host's does."""
    module_any: Any = module
    modes = [(part, part.training) for part in module.modules()]
    module_any._hexad = state
    try:
        with torch.no_grad():
            module.eval()
            host = type(module_any).forward(module, *inputs)
            ours = state.forward(module, *inputs)
    except Exception:  # whatever a host's module may raise on inputs that it was not made for
        return False
    finally:
        for part, training in modes:
            part.training = training
        del module_any._hexad
    tolerance = 1e-4 if ours.dtype == torch.float32 else 3e-2
    return (
        isinstance(host, Tensor)
        and (host.dtype, host.shape) == (ours.dtype, ours.shape)
        and bool(host.isfinite().all())
        and torch.allclose(ours, host, rtol=tolerance, atol=tolerance * float(host.abs().max()))
    )


def arguments(module: nn.Module) -> int:
    """How many arguments the host's forward must be given."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in plain) - 1 if len(plain) == len(parameters) else -1


def probe(width: int, dtype: torch.dtype, size: float = 1.0) -> Tensor:
    return size * torch.randn(1, 3, width, dtype=dtype, generator=torch.Generator().manual_seed(0))


def match_norm(module: Any) -> State | None:
    """A layer or RMS norm over the last dimension, by what it computes in float32 with weights of its own kind."""
    eps = next(
        (v for n in ("variance_epsilon", "eps", "epsilon") if isinstance(v := getattr(module, n, None), float)), 0
    )
    parameters = module._parameters
    if not eps or arguments(module) != 1:
        return None
    if type(module) is nn.LayerNorm:
        if len(module.normalized_shape) != 1:
            return None
        return State("layer norm", layers.layer_norm if module.weight is not None else layers.bare_layer_norm, eps=eps)
    weight = parameters.get("weight")
    if list(parameters) != ["weight"] or weight is None or weight.ndim != 1 or module._buffers or module._modules:
        return None
    trial = copy.deepcopy(module).float()
    generator = torch.Generator().manual_seed(1)
    trial.weight.data = torch.randn(weight.shape, generator=generator)
    for what, forward in (
        ("rms norm", layers.rms_norm),
        ("rms norm of 1 + weight", layers.rms_norm_of_one_plus),
        ("layer norm", layers.layer_norm),
    ):
        state = State(what, forward, eps=eps)
        # Small inputs, so that another epsilon would show.
        if agrees(trial, state, probe(weight.shape[0], torch.float32, 1e-2)):
            return state
    return None


def match_activation(module: Any) -> str | None:
    """The name of hk.linear's activation that some attribute of `module` computes; "" if none does."""
    z = torch.linspace(-8, 8, 257)[:, None]
    one = torch.ones(1, 1)
    for name in ("act_fn", "act", "activation_fn", "intermediate_act_fn", "activation"):
        function = getattr(module, name, None)
        if not callable(function):
            continue
        with torch.no_grad():
            wanted = function(z)
            for activation in ACTIVATIONS:
                if torch.allclose(hk.linear(z, one, activation=activation), wanted, rtol=1e-6, atol=1e-6):
                    return activation
    return ""


FUSED: tuple[tuple[tuple[str, ...], str, Forward], ...] = (
    (("gate_proj", "up_proj", "down_proj"), "gated feed-forward", layers.gated_feed_forward),
    (("wi_0", "wi_1", "wo"), "gated feed-forward", layers.gated_feed_forward),
    (("c_fc", "c_proj"), "feed-forward", layers.feed_forward),
    (("fc1", "fc2"), "feed-forward", layers.feed_forward),
    (("wi", "wo"), "feed-forward", layers.feed_forward),
    (("up_proj", "down_proj"), "feed-forward", layers.feed_forward),
    (("dense",), "linear and activation", layers.activated),
)


def match_fused(module: Any, usable: Callable[[nn.Module], bool]) -> State | None:
    """A feed-forward block, or a projection with residual and norm, whose parts `usable` allows."""
    parts: list[Any]
    if {"dense", "LayerNorm"} <= module._modules.keys():
        project, norm = module.dense, module.LayerNorm
        if arguments(module) != 2 or not usable(project) or type(norm) is not nn.LayerNorm or norm.weight is None:
            return None
        state = State("linear, residual and norm", layers.residual_norm, names=("dense", "LayerNorm"))
        outputs, inputs = rows_of(project).shape
        dtype = project.weight.dtype
        return state if agrees(module, state, probe(inputs, dtype), probe(outputs, dtype)) else None
    for names, what, forward in FUSED:
        parts = [module._modules.get(name) for name in names]
        if not all(p is not None and is_linear(p) and usable(p) for p in parts) or arguments(module) != 1:
            continue
        activation = match_activation(module)
        if not activation:
            return None
        state = State(f"{what}, {activation}", forward, activation=activation, names=names)
        return state if agrees(module, state, probe(rows_of(parts[0]).shape[1], parts[0].weight.dtype)) else None
    return None


def gate_as_one(module: Any, state: State, weights: str) -> bool:
    """Take gate and up as one packed product, where the packed kernels have that gate."""
    if state.forward is not layers.gated_feed_forward or weights == "dense" or state.activation not in GATES:
        return False
    gate, up = (getattr(module, name) for name in state.names[:2])
    if rows_of(gate).shape[0] % LANES or (gate.bias is None) != (up.bias is None):
        return False
    state.weights, state.activation = weights, GATES[state.activation]
    return True

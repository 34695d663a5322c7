"""Layers of a host's model computed by hexad: what `optimize` puts in place of their forward.

A layer is known by what it computes, not by its class: each match runs the host's forward on a few rows and is taken
only if hexad's gives the same. So a norm that adds 1 to its weight, or an activation of whatever name, is told apart by
numbers, and a layer that does something unheard of stays the host's.

A replacement is a function bound to the host's module as its `forward`: the module keeps its class, parameters, hooks
and state_dict. Where hexad must not serve (other dtypes and devices, autocast, gradients), the host's forward runs.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import hexad_kernels as hk

DTYPES = (torch.float32, torch.bfloat16)
EXACT = "packed" if hasattr(hk, "pack") else "dense"
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
GATES = {"silu": "silu_gate", "gelu": "gelu_gate"}
LANES = 16

Forward = Callable[..., Tensor]


@dataclass
class State:
    """What a replaced module carries beside its own attributes."""

    what: str
    forward: Forward
    weights: str = "dense"
    activation: str | None = None
    names: tuple[str, ...] = ()
    eps: float = 0.0
    packed: Any = None
    key: tuple[Any, ...] = ()


@cache
def _warn_of_gradients() -> None:
    warnings.warn(
        "hexad.optimize: gradients are recorded, so the host's own layers serve; call the model under torch.no_grad()",
        stacklevel=4,
    )


def host_serves(x: Tensor, *parameters: Tensor) -> bool:
    """Whether the host's forward must run: hexad's would refuse, be slow, or give another dtype."""
    if not x.is_cpu or x.dtype not in DTYPES or torch.is_autocast_enabled("cpu"):
        return True
    if any(p.dtype != x.dtype for p in parameters):
        return True
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        _warn_of_gradients()
        return True
    return False


# Weights


def check_weights(weights: str | None) -> str:
    """The form that `weights` asks for; None is the fastest exact one that this build has."""
    forms = (None, "dense", "packed", "int8", "int4")
    if weights not in forms:
        raise ValueError(f"weights: got {weights!r}, wants one of {', '.join(map(repr, forms))}")
    needed = {"packed": "pack", "int8": "quantize", "int4": "quantize"}.get(weights or "")
    if needed and not hasattr(hk, needed):
        raise NotImplementedError(f"weights: {weights!r} needs hexad_kernels.{needed}, which this version lacks")
    return weights or EXACT


def is_conv1d(module: nn.Module) -> bool:
    """The host's linear layer whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or is_conv1d(module)


def rows_of(module: Any) -> Tensor:
    """A linear layer's weight as (outputs, inputs)."""
    return module.weight.t() if is_conv1d(module) else module.weight


def _key(*weights: Tensor) -> tuple[Any, ...]:
    return tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)


def _pack(form: str, *weights: Tensor) -> Any:
    """Rows of one or more weights, one below the other, in panels."""
    weight = weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])
    name = "pack" if form == "packed" else "quantize"
    return getattr(hk, name)(weight, *(() if form == "packed" else (form,)))


def operand(state: State, *modules: Any) -> Any:
    """What hk.linear takes as the weight of `modules`; packed again if somebody changed the parameters."""
    if state.weights == "dense":
        return rows_of(modules[0])
    if not torch.compiler.is_compiling():
        key = _key(*(m.weight for m in modules))
        if key != state.key:
            state.packed, state.key = _pack(state.weights, *map(rows_of, modules)), key
    return state.packed


# Forwards


def linear(self: Any, x: Tensor) -> Tensor:
    if host_serves(x, self.weight):
        return type(self).forward(self, x)
    return hk.linear(x, operand(self._hexad, self), self.bias)


def layer_norm(self: Any, x: Tensor) -> Tensor:
    bias = getattr(self, "bias", None)
    if host_serves(x, self.weight, *(() if bias is None else (bias,))):
        return type(self).forward(self, x)
    return hk.norm(x, self.weight, bias, eps=self._hexad.eps)


def bare_layer_norm(self: Any, x: Tensor) -> Tensor:
    return type(self).forward(self, x) if host_serves(x) else hk.norm(x, eps=self._hexad.eps)


def rms_norm(self: Any, x: Tensor) -> Tensor:
    if host_serves(x, self.weight):
        return type(self).forward(self, x)
    return hk.norm(x, self.weight, kind="rms", eps=self._hexad.eps)


def rms_norm_of_one_plus(self: Any, x: Tensor) -> Tensor:
    if host_serves(x, self.weight):
        return type(self).forward(self, x)
    return hk.norm(x, kind="rms", eps=self._hexad.eps, scale=self.weight.expand(x.shape[0], -1))


def activated(self: Any, x: Tensor) -> Tensor:
    """act(W x + b)."""
    state = self._hexad
    first = getattr(self, state.names[0])
    if self.training or host_serves(x, first.weight):
        return type(self).forward(self, x)
    return hk.linear(x, operand(first._hexad, first), first.bias, activation=state.activation)


def feed_forward(self: Any, x: Tensor) -> Tensor:
    """V act(W x + b) + c."""
    state = self._hexad
    up, down = (getattr(self, name) for name in state.names)
    if self.training or host_serves(x, up.weight, down.weight):
        return type(self).forward(self, x)
    hidden = hk.linear(x, operand(up._hexad, up), up.bias, activation=state.activation)
    return hk.linear(hidden, operand(down._hexad, down), down.bias)


def gated_feed_forward(self: Any, x: Tensor) -> Tensor:
    """V (act(G x) * W x)."""
    state = self._hexad
    gate, up, down = (getattr(self, name) for name in state.names)
    if self.training or host_serves(x, gate.weight, up.weight, down.weight):
        return type(self).forward(self, x)
    if state.weights == "dense":
        hidden = hk.linear(x, operand(gate._hexad, gate), gate.bias, activation=state.activation)
        hidden = hidden * hk.linear(x, operand(up._hexad, up), up.bias)
    else:
        bias = None if gate.bias is None else torch.cat([gate.bias, up.bias])
        hidden = hk.linear(x, operand(state, gate, up), bias, activation=state.activation)
    return hk.linear(hidden, operand(down._hexad, down), down.bias)


def residual_norm(self: Any, x: Tensor, residual: Tensor) -> Tensor:
    """norm(W x + b + residual)."""
    project, norm = (getattr(self, name) for name in self._hexad.names)
    if self.training or host_serves(x, project.weight) or residual.dtype != x.dtype:
        return type(self).forward(self, x, residual)
    total = hk.linear(x, operand(project._hexad, project), project.bias, residual=residual)
    return hk.norm(total, norm.weight, norm.bias, eps=norm.eps)


# Matches


def agrees(module: nn.Module, state: State, *inputs: Tensor) -> bool:
    """Whether hexad's forward of `module` gives what the host's does."""
    module_any: Any = module
    training = module.training
    module_any._hexad = state
    try:
        with torch.no_grad():
            module.eval()
            host = type(module_any).forward(module, *inputs)
            ours = state.forward(module, *inputs)
    except Exception:  # whatever a host's module may raise on inputs that it was not made for
        return False
    finally:
        module.train(training)
        del module_any._hexad
    tolerance = 1e-4 if ours.dtype == torch.float32 else 3e-2
    return (
        isinstance(host, Tensor)
        and (host.dtype, host.shape) == (ours.dtype, ours.shape)
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
        return State("layer norm", layer_norm if module.weight is not None else bare_layer_norm, eps=eps)
    weight = parameters.get("weight")
    if list(parameters) != ["weight"] or weight is None or weight.ndim != 1 or module._buffers or module._modules:
        return None
    trial = copy.deepcopy(module).float()
    generator = torch.Generator().manual_seed(1)
    trial.weight.data = torch.randn(weight.shape, generator=generator)
    for what, forward in (
        ("rms norm", rms_norm),
        ("rms norm of 1 + weight", rms_norm_of_one_plus),
        ("layer norm", layer_norm),
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
    (("gate_proj", "up_proj", "down_proj"), "gated feed-forward", gated_feed_forward),
    (("wi_0", "wi_1", "wo"), "gated feed-forward", gated_feed_forward),
    (("c_fc", "c_proj"), "feed-forward", feed_forward),
    (("fc1", "fc2"), "feed-forward", feed_forward),
    (("wi", "wo"), "feed-forward", feed_forward),
    (("up_proj", "down_proj"), "feed-forward", feed_forward),
    (("dense",), "linear and activation", activated),
)


def match_fused(module: Any, usable: Callable[[nn.Module], bool]) -> State | None:
    """A feed-forward block, or a projection with residual and norm, whose parts `usable` allows."""
    parts: list[Any]
    if {"dense", "LayerNorm"} <= module._modules.keys():
        project, norm = module.dense, module.LayerNorm
        if arguments(module) != 2 or not usable(project) or type(norm) is not nn.LayerNorm or norm.weight is None:
            return None
        state = State("linear, residual and norm", residual_norm, names=("dense", "LayerNorm"))
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
    if state.forward is not gated_feed_forward or weights == "dense" or state.activation not in GATES:
        return False
    gate, up = (getattr(module, name) for name in state.names[:2])
    if rows_of(gate).shape[0] % LANES or (gate.bias is None) != (up.bias is None):
        return False
    state.weights, state.activation = weights, GATES[state.activation]
    return True

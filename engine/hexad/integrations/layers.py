"""Layers of a host's model computed by hexad: what `optimize` puts in place of their forward.

A replacement is a function bound to the host's module as its `forward`: the module keeps its class, parameters, hooks
and state_dict. Where hexad must not serve (other dtypes and devices, autocast, gradients), the host's forward runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import hexad_kernels as hk

DTYPES = (torch.float32, torch.bfloat16)
LANES = 16  # rows in a panel of a packed weight

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
    bias: Tensor | None = None
    bias_key: tuple[Any, ...] = ()
    taps: Tensor | None = None
    taps_key: tuple[Any, ...] = ()


@cache
def _warn_of_gradients() -> None:
    warnings.warn(
        "hexad: gradients are recorded, so the host's own layers serve; call the model under torch.no_grad()",
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
    """The form that `weights` asks for; None is the fastest exact one."""
    forms = (None, "dense", "packed", "int8", "int4")
    if weights not in forms:
        raise ValueError(f"weights: got {weights!r}, wants one of {', '.join(map(repr, forms))}")
    return weights or "packed"


def is_conv1d(module: nn.Module) -> bool:
    """The host's linear layer whose weight is (inputs, outputs)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    return type(module) is nn.Linear or is_conv1d(module)


def rows_of(module: Any) -> Tensor:
    """A linear layer's weight as (outputs, inputs)."""
    return module.weight.t() if is_conv1d(module) else module.weight


def key_of(*weights: Tensor) -> tuple[Any, ...]:
    """Changes when somebody changes the values."""
    return tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights)


def pack(form: str, *weights: Tensor) -> Any:
    """Rows of one or more weights, one below the other, in panels."""
    weight = weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])
    name = "pack" if form == "packed" else "quantize"
    return getattr(hk, name)(weight, *(() if form == "packed" else (form,)))


def operand(state: State, *modules: Any) -> Any:
    """What hk.linear takes as the weight of `modules`; packed again if somebody changed the parameters."""
    if state.weights == "dense":
        return rows_of(modules[0])
    if not torch.compiler.is_compiling():
        key = key_of(*(m.weight for m in modules))
        if key != state.key:
            state.packed, state.key = pack(state.weights, *map(rows_of, modules)), key
    elif state.packed is None:  # nobody called it before it was compiled
        return rows_of(modules[0]) if len(modules) == 1 else torch.cat([*map(rows_of, modules)])
    return state.packed


def bias_of(state: State, *modules: Any) -> Tensor | None:
    """The biases of `modules` one after the other, kept until somebody changes them."""
    if modules[0].bias is None or len(modules) == 1:
        return modules[0].bias
    if torch.compiler.is_compiling():
        return torch.cat([m.bias for m in modules])
    key = key_of(*(m.bias for m in modules))
    if key != state.bias_key:
        state.bias, state.bias_key = torch.cat([m.bias.detach() for m in modules]), key
    return state.bias


def share(state: State, *modules: Any) -> None:
    """Pack `modules` as one product, of which each keeps its own panels for when it is called alone."""
    whole, at = operand(state, *modules), 0
    for module in modules:
        rows, inputs = rows_of(module).shape
        own = module._hexad
        panels = whole.panels[at // LANES : (at + rows) // LANES]
        own.packed = hk.PackedWeight(panels, whole.form, (rows, inputs), whole.dtype, whole.error)
        own.key = key_of(module.weight)
        at += rows


def joined(state: State, x: Tensor, *modules: Any) -> Tensor:
    """The outputs of several linear layers of x, side by side."""
    if state.weights == "dense":
        return torch.cat([m.forward(x) for m in modules], dim=-1)
    return hk.linear(x, operand(state, *modules), bias_of(state, *modules))


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


def feed_forward(self: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """V act(W x + b) + c, and a block's residual."""
    state = self._hexad
    up, down = (getattr(self, name) for name in state.names)
    if self.training or host_serves(x, up.weight, down.weight):
        y = type(self).forward(self, x)
        return y if residual is None else y + residual
    hidden = hk.linear(x, operand(up._hexad, up), up.bias, activation=state.activation)
    return hk.linear(hidden, operand(down._hexad, down), down.bias, residual=residual)


def gated_feed_forward(self: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """V (act(G x) * W x), and a block's residual."""
    state = self._hexad
    gate, up, down = (getattr(self, name) for name in state.names)
    if self.training or host_serves(x, gate.weight, up.weight, down.weight):
        y = type(self).forward(self, x)
        return y if residual is None else y + residual
    if state.weights == "dense":
        hidden = hk.linear(x, operand(gate._hexad, gate), gate.bias, activation=state.activation)
        hidden = hidden * hk.linear(x, operand(up._hexad, up), up.bias)
    else:
        hidden = hk.linear(x, operand(state, gate, up), bias_of(state, gate, up), activation=state.activation)
    return hk.linear(hidden, operand(down._hexad, down), down.bias, residual=residual)


def residual_norm(self: Any, x: Tensor, residual: Tensor) -> Tensor:
    """norm(W x + b + residual)."""
    project, norm = (getattr(self, name) for name in self._hexad.names)
    if self.training or host_serves(x, project.weight) or residual.dtype != x.dtype:
        return type(self).forward(self, x, residual)
    total = hk.linear(x, operand(project._hexad, project), project.bias, residual=residual)
    return hk.norm(total, norm.weight, norm.bias, eps=norm.eps)

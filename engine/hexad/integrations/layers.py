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
    dtype = x.dtype
    if not x.is_cpu or dtype not in DTYPES or torch.is_autocast_enabled("cpu"):
        return True
    for p in parameters:
        if p.dtype != dtype:
            return True
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        _warn_of_gradients()
        return True
    return False


# Weights

_ABSENT = object()


def own(module: Any, name: str, *default: Any) -> Any:
    """A parameter of a module: `getattr` without the detour that torch takes to it."""
    found = module._parameters.get(name, _ABSENT)
    return getattr(module, name, *default) if found is _ABSENT else found


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
    key: tuple[Any, ...] = ()
    for w in weights:
        key += w.data_ptr(), 0 if w.is_inference() else w._version
    return key


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
        key = key_of(*[own(m, "weight") for m in modules])
        if key != state.key:
            state.packed, state.key = pack(state.weights, *map(rows_of, modules)), key
    elif state.packed is None:  # nobody called it before it was compiled
        return rows_of(modules[0]) if len(modules) == 1 else torch.cat([*map(rows_of, modules)])
    return state.packed


def bias_of(state: State, *modules: Any) -> Tensor | None:
    """The biases of `modules` one after the other, kept until somebody changes them."""
    first: Tensor | None = own(modules[0], "bias")
    if first is None or len(modules) == 1:
        return first
    if torch.compiler.is_compiling():
        return torch.cat([m.bias for m in modules])
    key = key_of(*[own(m, "bias") for m in modules])
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
    if host_serves(x, own(self, "weight")):
        return type(self).forward(self, x)
    return product(self, x)


def product(self: Any, x: Tensor, residual: Tensor | None = None, activation: str | None = None) -> Tensor:
    """act(W x + b) + residual of a linear layer."""
    return hk.linear(x, operand(self._hexad, self), own(self, "bias"), activation=activation, residual=residual)


def layer_norm(self: Any, x: Tensor) -> Tensor:
    weight, bias = own(self, "weight"), own(self, "bias", None)
    if host_serves(x, weight) if bias is None else host_serves(x, weight, bias):
        return type(self).forward(self, x)
    return hk.norm(x, weight, bias, eps=self._hexad.eps)


def bare_layer_norm(self: Any, x: Tensor) -> Tensor:
    return type(self).forward(self, x) if host_serves(x) else hk.norm(x, eps=self._hexad.eps)


def rms_norm(self: Any, x: Tensor) -> Tensor:
    weight = own(self, "weight")
    if host_serves(x, weight):
        return type(self).forward(self, x)
    return hk.norm(x, weight, kind="rms", eps=self._hexad.eps)


def rms_norm_of_one_plus(self: Any, x: Tensor) -> Tensor:
    if host_serves(x, self.weight):
        return type(self).forward(self, x)
    return hk.norm(x, kind="rms", eps=self._hexad.eps, scale=self.weight.expand(x.shape[0], -1))


def activated(self: Any, x: Tensor) -> Tensor:
    """act(W x + b)."""
    state = self._hexad
    first = self._modules[state.names[0]]
    if self.training or host_serves(x, own(first, "weight")):
        return type(self).forward(self, x)
    return product(first, x, None, state.activation)


def feed_forward(self: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """V act(W x + b) + c, and a block's residual."""
    state = self._hexad
    up, down = [self._modules[name] for name in state.names]
    if self.training or host_serves(x, own(up, "weight"), own(down, "weight")):
        y = type(self).forward(self, x)
        return y if residual is None else y + residual
    return product(down, product(up, x, None, state.activation), residual)


def gated_feed_forward(self: Any, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """V (act(G x) * W x), and a block's residual."""
    state = self._hexad
    gate, up, down = [self._modules[name] for name in state.names]
    if self.training or host_serves(x, own(gate, "weight"), own(up, "weight"), own(down, "weight")):
        y = type(self).forward(self, x)
        return y if residual is None else y + residual
    if state.weights == "dense":
        hidden = product(gate, x, None, state.activation) * product(up, x)
    else:
        hidden = hk.linear(x, operand(state, gate, up), bias_of(state, gate, up), activation=state.activation)
    return product(down, hidden, residual)


def residual_norm(self: Any, x: Tensor, residual: Tensor) -> Tensor:
    """norm(W x + b + residual)."""
    project, norm = [self._modules[name] for name in self._hexad.names]
    if self.training or host_serves(x, own(project, "weight")) or residual.dtype != x.dtype:
        return type(self).forward(self, x, residual)
    return hk.norm(product(project, x, residual), own(norm, "weight"), own(norm, "bias"), eps=norm.eps)

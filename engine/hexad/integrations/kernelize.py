"""Layers of transformers models through the host's own door for kernels, the `kernels` package, with no Hub.

    from hexad.integrations.kernelize import kernelize
    kernelize(model)      # RMS norms, rotary positions and gated feed-forward blocks, for inference on the CPU

`mapping()` alone is for `kernels.use_kernel_mapping` or `register_kernel_mapping`. A kernel of that package has no
state, so weights stay dense here; `hexad.optimize` does more. Activations alone are not in the mapping: hexad has them
in the epilogue of a product, not as passes of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from kernels import (  # type: ignore[attr-defined]  # mypy takes the source root kernels/ for the package
    Mode,
    replace_kernel_forward_from_hub,
    use_kernel_mapping,
)
from kernels import kernelize as kernels_kernelize  # type: ignore[attr-defined]
from torch import Tensor, nn

import hexad_kernels as hk
from hexad.integrations import layers, matching
from hexad.integrations.host import check_version

TESTED = ("0.17", "0.18")  # from, below


class RMSNorm(nn.Module):
    """weight * x / rms(x), for modules with `weight` and `variance_epsilon`."""

    has_backward = False
    can_torch_compile = True

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return hk.norm(hidden_states, self.weight, kind="rms", eps=self.variance_epsilon)


def _gated(self: Any, x: Tensor, activation: str) -> Tensor:
    hidden = hk.linear(x, self.gate_proj.weight, self.gate_proj.bias, activation=activation)
    hidden = hidden * hk.linear(x, self.up_proj.weight, self.up_proj.bias)
    return hk.linear(hidden, self.down_proj.weight, self.down_proj.bias)


class SwiGLUMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    has_backward = False
    can_torch_compile = True

    def forward(self: Any, x: Tensor) -> Tensor:
        return _gated(self, x, "silu")


class GeGLUMLP(nn.Module):
    """down(gelu(gate(x)) * up(x)), GELU by its tanh formula."""

    has_backward = False
    can_torch_compile = True

    def forward(self: Any, x: Tensor) -> Tensor:
        return _gated(self, x, "gelu_tanh")


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> Tensor:
    """The first cos.shape[-1] features rotated, the rest as they are."""
    if unsqueeze_dim == 2:
        return _rotated(x.transpose(1, 2), cos, sin, 1).transpose(1, 2)
    batch, _, rows, width = x.shape
    turned = cos.shape[-1]
    # A table with the rows of every sequence one after the other; sequence b starts at b * rows.
    c, s = (t[..., : turned // 2].reshape(-1, turned // 2) for t in (cos, sin))
    starts = None
    if cos.shape[0] > 1:
        starts = torch.arange(0, batch * rows, rows, dtype=torch.int32, device=x.device) if rows else None
    y = hk.rope(x[..., :turned], c, s, positions=starts)
    return y if turned == width else torch.cat([y, x[..., turned:]], dim=-1)


class Rotary(nn.Module):
    """Queries and keys rotated; cos and sin (B or 1, S, D) with their halves alike."""

    has_backward = False
    can_torch_compile = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        return _rotated(q, cos, sin, unsqueeze_dim), _rotated(k, cos, sin, unsqueeze_dim)


class InProcess:
    """A repository of the kernels package that holds its layer already."""

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer = layer

    def load(self) -> type[nn.Module]:
        return self.layer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InProcess) and self.layer is other.layer

    def __hash__(self) -> int:
        return hash(self.layer)

    def __repr__(self) -> str:
        return f"hexad.{self.layer.__name__}"


LAYERS: dict[str, type[nn.Module]] = {
    "RMSNorm": RMSNorm,
    "rotary_pos_emb": Rotary,
    "SwiGLUMLP": SwiGLUMLP,
    "GeGLUMLP": GeGLUMLP,
}
GATED = {"silu": "SwiGLUMLP", "gelu_tanh": "GeGLUMLP"}


def mapping() -> dict[str, Any]:
    """Layer name -> device -> mode -> layer, as kernels' `use_kernel_mapping` takes it. Inference, compiled or not."""
    mode = Mode.INFERENCE | Mode.TORCH_COMPILE
    return {name: {"cpu": {mode: InProcess(layer)}} for name, layer in LAYERS.items()}


def _name_gated_blocks(model: nn.Module) -> list[Any]:
    """Give the classes of gated feed-forward blocks, which the host leaves nameless, the host's names for kernels."""
    named = []
    for module in model.modules():
        kind: Any = type(module)
        linears = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
        if hasattr(kind, "kernel_layer_name") or not all(type(part) is nn.Linear for part in linears):
            continue
        name = GATED.get(matching.match_activation(module) or "")
        if name:
            replace_kernel_forward_from_hub(kind, name)
            named.append(kind)
    return named


def _probes(module: Any, dtype: torch.dtype) -> list[tuple[Tensor, ...]]:
    """Inputs on which the host's forward and ours are to agree."""
    if "weight" in module._parameters:
        return [(matching.probe(module.weight.shape[0], dtype),)]
    if hasattr(module, "gate_proj"):
        return [(matching.probe(module.gate_proj.in_features, dtype),)]
    q, k = matching.probe(64, dtype).reshape(2, 2, 3, 16), matching.probe(32, dtype).reshape(2, 1, 3, 16)
    cos, sin = (torch.cat([t, t], -1) for t in matching.probe(32, dtype).reshape(2, 2, 3, 8))
    return [(q, k, cos, sin), (q, k, cos[:1], sin[:1])]


def _agrees(module: Any, dtype: torch.dtype) -> bool:
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for inputs in _probes(module, dtype):
        host, ours = type(module).forward(module, *inputs), module.forward(*inputs)
        pairs = zip(host, ours) if isinstance(host, tuple) else [(host, ours)]
        if not all(a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs):
            return False
    return True


@torch.no_grad()
def kernelize(model: nn.Module) -> dict[str, str]:
    """Let the kernels package give `model` hexad's layers, each compared with the host's before it stays.

    model   a transformers model in eval mode, float32 or bfloat16, on the CPU
    Returns name -> layer for what was replaced. Rotary functions belong to a host's file, not to a model: they change
    for every model of that file. ValueError for another mode, dtype or device.
    """
    check_version("kernels", *TESTED)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, wants a torch.nn.Module")
    parameter = next(model.parameters(), None)
    if parameter is None:
        return {}
    if model.training or parameter.dtype not in layers.DTYPES or not parameter.is_cpu:
        raise ValueError(
            f"model: got {parameter.dtype} on {parameter.device}{' in training mode' if model.training else ''}, wants "
            "float32 or bfloat16 on the CPU in eval mode"
        )
    named = _name_gated_blocks(model)
    try:
        with use_kernel_mapping(mapping(), inherit_mapping=False):
            kernels_kernelize(model, mode=Mode.INFERENCE | Mode.TORCH_COMPILE, device="cpu")
        found = {name: module for name, module in model.named_modules() if hasattr(type(module), "kernel_layer_name")}
        for name, module in model.named_modules():
            functions = getattr(module, "_kernel_funcs", {})
            found.update({f"{name}.{function}": layer for function, layer in functions.items()})
        replaced = {}
        for name, module in found.items():
            forward = getattr(vars(module).get("forward"), "__func__", None)
            layer = type(module).kernel_layer_name
            if layer not in LAYERS or forward is not LAYERS[layer].forward:
                continue
            if _agrees(module, parameter.dtype):
                replaced[name] = layer
            else:
                del module.forward
        return replaced
    finally:
        for kind in named:
            del kind.kernel_layer_name, kind.kernel_condition

"""What the converted layers of every flow library share.

A converted model is for inference: it copies the host's model, in eval mode, without gradients for its weights.
Affine layers that follow each other are folded into one matrix, in float64, and inverted once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hexad_kernels as hk
from hexad_kernels.invconv import invert_affine


class UnknownLayer(TypeError):
    """A layer that hexad has no kernel for; the text names it and its place."""


def unknown(place: str, layer: object, why: str = "hexad does not know this layer") -> UnknownLayer:
    return UnknownLayer(f"{place}: {type(layer).__module__}.{type(layer).__name__}: {why}")


@dataclass
class Map:
    """y = weight x + bias at every place, in float64, with its log-determinant per place."""

    weight: Tensor
    bias: Tensor
    log_det: Tensor

    def then(self, after: Map) -> Map:
        return Map(after.weight @ self.weight, after.weight @ self.bias + after.bias, self.log_det + after.log_det)


@torch.no_grad()
def probe(layer: Callable[[Tensor], tuple[Tensor, Any]], channels: int, space: int = 0) -> Map:
    """The map that an affine layer applies to (B, channels, 1, ...), read off its outputs for 0 and the unit vectors.

    So the host's own parametrisation (LU, QR, Householder, permutations) is evaluated by the host, in float64, once.
    """
    basis = torch.cat((torch.zeros(1, channels, dtype=torch.float64), torch.eye(channels, dtype=torch.float64)))
    y, log_det = layer(basis.reshape(-1, channels, *[1] * space))
    y = y.reshape(channels + 1, channels)
    log_det = torch.as_tensor(log_det, dtype=torch.float64).flatten()[0]
    return Map((y[1:] - y[0]).T.contiguous(), y[0].clone(), log_det)


class Affine(nn.Module):
    """A `Map` and its inverse, or what a host takes for its inverse (`back`).

    They run as `hexad_kernels.invconv`, as `linear` for vectors, and as a scale where nothing mixes.
    """

    there_weight: Tensor
    there_bias: Tensor
    back_weight: Tensor
    back_bias: Tensor
    log_det: Tensor

    def __init__(self, there: Map, dtype: torch.dtype, back: Map | None = None) -> None:
        super().__init__()
        weight, bias = (back.weight, back.bias) if back else invert_affine(there.weight, there.bias)
        self.diagonal = bool((there.weight == there.weight.diagonal().diag()).all())
        for name, w, b in (("there", there.weight, there.bias), ("back", weight, bias)):
            w = w.diagonal() if self.diagonal else w
            self.register_buffer(f"{name}_weight", w.to(dtype).contiguous())
            self.register_buffer(f"{name}_bias", b.to(dtype))
        self.register_buffer("log_det", there.log_det.to(dtype))

    def apply_to(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """x (B, C, *spatial) -> y, log_det (B,)."""
        weight, bias = (self.back_weight, self.back_bias) if inverse else (self.there_weight, self.there_bias)
        if self.diagonal:
            place = (-1, *[1] * (x.ndim - 2))
            y = torch.addcmul(bias.view(place), x, weight.view(place))
        elif x.ndim == 2:
            y = hk.linear(x, weight, bias)
        else:
            y = hk.invconv(x, weight, bias)
        log_det = self.log_det * x[0, 0].numel() if len(x) else self.log_det
        return y, (-log_det if inverse else log_det).expand(len(x))

    def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return self.apply_to(x, False)

    def inverse(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
        return self.apply_to(x, True)


class Parts(nn.Module):
    """Which channels a coupling moves, brought into the order that `hexad_kernels.coupling` takes."""

    order: Tensor
    places: Tensor

    def __init__(self, active: Tensor) -> None:
        super().__init__()
        active = active.bool().cpu()
        channels, count = len(active), int(active.sum())
        self.count, self.channels = count, channels
        self.flip = count != channels // 2
        self.balanced = count in (channels // 2, channels - channels // 2)
        moved, still = active.nonzero().flatten(), (~active).nonzero().flatten()
        order = torch.cat((moved, still) if self.flip else (still, moved))
        self.sorted = bool((order == torch.arange(channels)).all())
        self.register_buffer("order", order)
        self.register_buffer("places", order.argsort())

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, ...) -> x in the kernel's order, and the passive channels in their own order."""
        x = x if self.sorted else x[:, self.order]
        return x, x[:, self.count :] if self.flip else x[:, : self.channels - self.count]

    def couple(
        self,
        x: Tensor,
        shift: Tensor,
        log_scale: Tensor | None,
        inverse: bool,
        scale_map: str = "exp",
        clamp: float = 2.0,
    ) -> tuple[Tensor, Tensor]:
        """x as `split` gave it; shift and log_scale of the active channels -> y (B, C, ...), log_det (B,)."""
        options: dict[str, Any] = {"inverse": inverse, "scale_map": scale_map, "clamp": clamp}
        if self.balanced:
            y, log_det = hk.coupling(x, shift, log_scale, flip=self.flip, **options)
        else:
            y, log_det = couple_all(x[:, : self.count], shift, log_scale, **options)
            y = torch.cat((y, x[:, self.count :]), 1)
        return (y if self.sorted else y[:, self.places]), log_det


def couple_all(active: Tensor, shift: Tensor, log_scale: Tensor | None, **options: Any) -> tuple[Tensor, Tensor]:
    """A coupling of which only the active half is given. The kernel wants a passive half: the active one again."""
    y, log_det = hk.coupling(torch.cat((active, active), 1), shift, log_scale, **options)
    return y[:, active.shape[1] :], log_det


def fold(layers: list[nn.Module | Map], dtype: torch.dtype) -> nn.ModuleList:
    """Neighbouring maps become one `Affine`."""
    found: list[nn.Module | Map] = []
    for layer in layers:
        if isinstance(layer, Map) and found and isinstance(found[-1], Map) and len(found[-1].bias) == len(layer.bias):
            found[-1] = found[-1].then(layer)
        else:
            found.append(layer)
    return nn.ModuleList([Affine(layer, dtype) if isinstance(layer, Map) else layer for layer in found])


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first floating parameter or buffer."""
    tensors = [*model.parameters(), *model.buffers()]
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())

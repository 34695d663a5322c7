"""Convolutions that beat the host's: as one product of a packed weight where pixels are few, else 3 x 3 by Winograd.

torch's direct convolution (oneDNN) stands at 0.7 to 0.95 of the machine's arithmetic beyond some hundred pixels, so
only fewer multiplications can be much faster there: hexad_kernels.winograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hexad_kernels as hk
from hexad.integrations import layers
from hexad.integrations.layers import State, host_serves

FEW = 128  # pixels of all images together
TILES = 8  # of 4 x 4 outputs, from which on Winograd pays
CHANNELS = 32
NARROW = 32  # input channels whose columns are cheap to lay out


def fits(conv: nn.Conv2d) -> bool:
    """Whether a convolution has one of the forms that are computed here."""
    size = conv.kernel_size
    return (
        conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.stride in ((1, 1), (2, 2))
        and conv.padding_mode == "zeros"
        and size in ((1, 1), (3, 3))
        and conv.padding == (size[0] // 2, size[0] // 2)
    )


def few(x: Tensor, conv: Any) -> bool:
    """Whether a convolution of x has few outputs."""
    step = conv.stride[0]
    return x.ndim == 4 and x.shape[0] * -(-x.shape[2] // step) * -(-x.shape[3] // step) <= FEW


def columns(x: Tensor, size: int, step: int = 1) -> Tensor:
    """What each `step`th pixel of x (B, C, H, W) sees through a size x size kernel: (B, H', W', size * size * C)."""
    pixels = x.permute(0, 2, 3, 1)
    if size == 1:
        return pixels[:, ::step, ::step]
    batch, channels, height, width = x.shape
    edge = size // 2
    padded = F.pad(pixels, (0, 0, edge, edge, edge, edge))
    b, h, w, c = padded.stride()
    down, across = -(-height // step), -(-width // step)
    seen = padded.as_strided((batch, down, across, size, size, channels), (b, step * h, step * w, h, w, c))
    return seen.reshape(batch, down, across, -1)


def product(x: Tensor, state: State, conv: Any, activation: str | None = None) -> Tensor:
    """act(conv(x)) as (B, H, W, outputs)."""
    key = layers.key_of(conv.weight)
    if key != state.key:
        rows = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)
        state.packed, state.key = layers.pack("packed", rows.contiguous()), key
    seen = columns(x, conv.kernel_size[0], conv.stride[0])
    return hk.linear(seen, state.packed, conv.bias, activation=activation)


def pointwise(x: Tensor, conv: Any) -> Tensor:
    """A 1 x 1 convolution of x (B, C, H, W), contiguous."""
    batch, _, height, width = x.shape
    weight, pixels = conv.weight.flatten(1).expand(batch, -1, -1), x.flatten(2)
    if conv.bias is None:
        y = torch.bmm(weight, pixels)
    else:
        y = torch.baddbmm(conv.bias[:, None].expand(batch, -1, 1), weight, pixels)
    return y.view(batch, -1, height, width)


# Winograd


def winograd(x: Tensor, state: State, conv: Any) -> Tensor:
    """A 3 x 3 convolution of x (B, C, H, W)."""
    key = layers.key_of(conv.weight)
    if state.taps is None or key != state.taps_key:
        state.taps, state.taps_key = hk.pack_winograd(conv.weight.detach()), key
    return hk.winograd(x, state.taps, conv.bias, outputs=conv.out_channels)


def _wins(x: Tensor, conv: Any) -> bool:
    batch, channels, height, width = x.shape
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and x.dtype == torch.float32
        and min(channels, conv.out_channels) >= CHANNELS
        and batch * -(-height // 4) * -(-width // 4) >= TILES
    )


def direct(self: Any, x: Tensor) -> Tensor:
    """A Conv2d's forward, but for Winograd."""
    if torch.compiler.is_compiling() or x.ndim != 4 or host_serves(x, self.weight):
        return type(self).forward(self, x)
    if few(x, self):
        # As the host's, so that what follows does not lay weights out for channels last.
        return product(x, self._hexad, self).permute(0, 3, 1, 2).contiguous()
    if self.kernel_size == self.stride == (1, 1) and x.dtype == torch.float32 and x.is_contiguous():
        return pointwise(x, self)
    return type(self).forward(self, x)


def fastest(self: Any, x: Tensor) -> Tensor:
    """A Conv2d's forward."""
    if torch.compiler.is_compiling() or x.ndim != 4 or not _wins(x, self) or host_serves(x, self.weight):
        return direct(self, x)
    return winograd(x, self._hexad, self)


class ChannelsLast:
    """A sequence of convolutions and leaky ReLUs, channels last between the layers.

    Layers of size 1, of few input channels or of few pixels are products, with the ReLU in them; the rest is torch's.
    """

    def __init__(self, layers: list[tuple[nn.Conv2d, float]]) -> None:
        self.layers = [(conv, slope, State("convolution", direct)) for conv, slope in layers]

    @staticmethod
    def of(sequence: nn.Sequential) -> ChannelsLast | None:
        found: list[tuple[nn.Conv2d, float]] = []
        for module in sequence:
            if type(module) is nn.Conv2d and fits(module):
                found.append((module, 1.0))
            elif type(module) is nn.LeakyReLU and found and found[-1][1] == 1.0:
                found[-1] = (found[-1][0], module.negative_slope)
            else:
                return None
        return ChannelsLast(found) if found else None

    def serves(self, x: Tensor) -> bool:
        return x.ndim == 4 and not torch.compiler.is_compiling() and not host_serves(x, self.layers[0][0].weight)

    def __call__(self, x: Tensor) -> Tensor:
        for conv, slope, state in self.layers:
            if conv.kernel_size == (1, 1) or conv.in_channels <= NARROW or few(x, conv):
                x = product(x, state, conv, "relu" if slope == 0 else None).permute(0, 3, 1, 2)
                slope = slope or 1.0
            else:
                x = conv(x)
            x = x if slope == 1 else F.leaky_relu(x, slope)
        return x

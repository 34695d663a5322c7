"""Convolutions that beat the host's: as one product of a packed weight where pixels are few, by Winograd where many.

torch's direct convolution (oneDNN) stands at 0.95 of the machine's arithmetic beyond some hundred pixels, so only fewer
multiplications can be faster there. F(4 x 4, 3 x 3) takes 36 for 16 outputs where the direct form takes 144, at some
thirty times its rounding error: 4e-5 for outputs of size 1.

Paper: Lavin & Gray 2015 (arXiv 1509.09308).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hexad_kernels as hk
from hexad.integrations import layers
from hexad.integrations.layers import State, host_serves

FEW = 128  # pixels of all images together
TILES = 64  # of 4 x 4 outputs, from which on Winograd pays
CHANNELS = 64
NARROW = 32  # input channels whose columns are cheap to lay out


def fits(conv: nn.Conv2d) -> bool:
    """Whether a convolution has one of the forms that are computed here."""
    size = conv.kernel_size
    return (
        conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.stride == (1, 1)
        and conv.padding_mode == "zeros"
        and size in ((1, 1), (3, 3))
        and conv.padding == (size[0] // 2, size[0] // 2)
    )


def few(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[0] * x.shape[2] * x.shape[3] <= FEW


def columns(x: Tensor, size: int) -> Tensor:
    """What each pixel of x (B, C, H, W) sees through a size x size kernel: (B, H, W, size * size * C)."""
    pixels = x.permute(0, 2, 3, 1)
    if size == 1:
        return pixels
    batch, channels, height, width = x.shape
    edge = size // 2
    padded = F.pad(pixels, (0, 0, edge, edge, edge, edge))
    b, h, w, c = padded.stride()
    seen = padded.as_strided((batch, height, width, size, size, channels), (b, h, w, h, w, c))
    return seen.reshape(batch, height, width, -1)


def product(x: Tensor, state: State, conv: Any, activation: str | None = None) -> Tensor:
    """act(conv(x)) as (B, H, W, outputs)."""
    key = layers.key_of(conv.weight)
    if key != state.key:
        rows = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)
        state.packed, state.key = layers.pack("packed", rows.contiguous()), key
    return hk.linear(columns(x, conv.kernel_size[0]), state.packed, conv.bias, activation=activation)


# Winograd


@cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs (36, 36), weights (6, 3) and outputs (16, 36), for the points 0, 1, -1, 2, -2 and infinity."""
    inputs = torch.tensor(
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float64,
    )  # fmt: skip
    weights = torch.tensor(
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
    )
    outputs = torch.tensor(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
    )
    return torch.kron(inputs, inputs).float(), weights / 24, torch.kron(outputs, outputs).float()


def _transformed(state: State, conv: Any) -> Tensor:
    """The weight as (36, outputs, inputs), made again if somebody changed it."""
    key = layers.key_of(conv.weight)
    if state.taps is None or key != state.taps_key:
        to_weights = _transforms()[1]
        taps = to_weights @ conv.weight.detach().double() @ to_weights.T
        state.taps, state.taps_key = taps.permute(2, 3, 0, 1).flatten(0, 1).float().contiguous(), key
    return state.taps


def winograd(x: Tensor, state: State, conv: Any) -> Tensor:
    """A 3 x 3 convolution of x (B, C, H, W), H and W multiples of 4."""
    to_inputs, _, to_outputs = _transforms()
    batch, channels, height, width = x.shape
    down, across = height // 4, width // 4
    padded = F.pad(x, (1, 1, 1, 1))
    b, c, h, w = padded.stride()
    tiles = padded.as_strided((6, 6, channels, batch, down, across), (h, w, c, b, 4 * h, 4 * w)).reshape(36, -1)
    products = torch.bmm(_transformed(state, conv), (to_inputs @ tiles).view(36, channels, -1))
    y = (to_outputs @ products.view(36, -1)).view(4, 4, -1, batch, down, across)
    y = y.permute(3, 2, 4, 0, 5, 1).reshape(batch, -1, height, width)
    return y if conv.bias is None else y.add_(conv.bias[:, None, None])


def _wins(x: Tensor, conv: Any) -> bool:
    batch, channels, height, width = x.shape
    return (
        conv.kernel_size == (3, 3)
        and x.dtype == torch.float32
        and min(channels, conv.out_channels) >= CHANNELS
        and height % 4 == 0
        and width % 4 == 0
        and batch * height * width >= 16 * TILES
    )


def direct(self: Any, x: Tensor) -> Tensor:
    """A Conv2d's forward, but for Winograd."""
    if torch.compiler.is_compiling() or not few(x) or host_serves(x, self.weight):
        return type(self).forward(self, x)
    return product(x, self._hexad, self).permute(0, 3, 1, 2)


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
            if conv.kernel_size == (1, 1) or conv.in_channels <= NARROW or few(x):
                x = product(x, state, conv, "relu" if slope == 0 else None).permute(0, 3, 1, 2)
                slope = slope or 1.0
            else:
                x = conv(x)
            x = x if slope == 1 else F.leaky_relu(x, slope)
        return x

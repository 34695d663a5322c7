"""A class-conditional convolutional GAN (Radford et al. 2015, arXiv 1511.06434; conditioning: Miyato & Koyama
2018, arXiv 1802.05637)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hexad_kernels as ops

from ..layers import convolve

KEYS: dict[str, str] = {}


@dataclass(frozen=True)
class Config:
    """size: the image's side, a multiple of 2; latent: length of z; width: channels; classes: how many."""

    size: int = 8
    latent: int = 48
    width: int = 64
    classes: int = 10


class Folded(nn.Module):
    """A linear map, a batch norm and SiLU. `eval()` folds the norm into the weights, once; `train()` unfolds it.

    W' = W g / sqrt(var + eps),   b' = beta - mean g / sqrt(var + eps)

    The folded pair are buffers, so that they follow the module to another device, but no part of its state.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("bias", None, persistent=False)

    def folded(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def train(self, mode: bool = True) -> Folded:
        super().train(mode)
        self.weight, self.bias = (None, None) if mode else self.folded()
        return self


class NormedConv(Folded):
    """x (B, inputs, H, W) -> SiLU(batch norm(W * x)), (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(outputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def folded(self) -> tuple[Tensor, Tensor]:
        return fold(self.conv.weight, self.norm)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return F.silu(self.norm(self.conv(x)))
        return convolve(x, self.weight, self.bias, activation="silu")


class NormedLinear(Folded):
    """z (B, inputs) -> SiLU(batch norm(W z)) as an image (B, channels, side, side)."""

    def __init__(self, inputs: int, channels: int, side: int) -> None:
        super().__init__(channels)
        self.shape = (channels, side, side)
        self.linear = nn.Linear(inputs, channels * side * side, bias=False)

    def folded(self) -> tuple[Tensor, Tensor]:
        channels, inputs = self.shape[0], self.linear.in_features
        weight, bias = fold(self.linear.weight.view(channels, -1, inputs), self.norm)
        return weight.flatten(0, 1), bias.repeat_interleave(weight.shape[1])

    def forward(self, z: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return F.silu(self.norm(self.linear(z).view(-1, *self.shape)))
        return ops.linear(z, self.weight, self.bias, activation="silu").view(-1, *self.shape)


@torch.no_grad()
def fold(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight (C, ...) followed by a batch norm over its C outputs -> the one weight and bias (C,) equal to
    both. In float64 inside."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    bias = norm.bias.double() - norm.running_mean.double() * scale
    folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), bias.to(weight.dtype)


class Generator(nn.Module):
    """(z (B, latent), labels (B,) int64) -> images (B, 1, size, size) in [-1, 1]."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        self.embed = nn.Embedding(config.classes, config.latent)
        self.start = NormedLinear(2 * config.latent, 2 * config.width, config.size // 2)
        self.middle = NormedConv(2 * config.width, config.width)
        self.detail = NormedConv(config.width, config.width)
        self.output = nn.Conv2d(config.width, 1, 3, padding=1)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = self.start(torch.cat([z, self.embed(labels)], 1))
        x = self.detail(self.middle(F.interpolate(x, scale_factor=2.0)))
        assert self.output.bias is not None
        return convolve(x, self.output.weight, self.output.bias, activation="tanh", training=self.training)


class Discriminator(nn.Module):
    """(images (B, 1, size, size), labels (B,)) -> logits (B,): f(x) + <class vector, features(x)> / sqrt(width of
    the features).

    Only training needs it, and it is not shipped. Beside its features it sees how much the batch varies
    (Karras et al. 2017, arXiv 1710.10196), so that a generator which repeats itself is found out.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        width, side = config.width, config.size // 2
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.coarse = nn.Conv2d(2 * width + 1, 2 * width, 3, padding=1)
        self.features = nn.Linear(2 * width * side * side, 2 * width)
        self.embed = nn.Embedding(config.classes, 2 * width)
        self.output = nn.Linear(2 * width, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = F.leaky_relu(self.down(F.leaky_relu(self.stem(images), 0.2)), 0.2)
        spread = (x.var(0, correction=0) + 1e-8).sqrt().mean()
        x = torch.cat([x, spread.expand(len(x), 1, *x.shape[2:])], 1)
        x = F.leaky_relu(self.features(F.leaky_relu(self.coarse(x), 0.2).flatten(1)), 0.2)
        matched: Tensor = (self.embed(labels) * x).mean(1) * x.shape[1] ** 0.5
        return self.output(x)[:, 0] + matched

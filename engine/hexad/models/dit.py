"""DiT, a class-conditional diffusion transformer with adaLN-zero blocks (Peebles & Xie 2022, arXiv
2212.09748)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hexad_kernels as ops

from ..layers import Linear

KEYS: dict[str, str] = {}


@dataclass(frozen=True)
class Config:
    """size and channels of the image; patch: side of a token; classes: how many, without the null class."""

    size: int = 8
    channels: int = 1
    patch: int = 2
    width: int = 64
    depth: int = 4
    heads: int = 4
    classes: int = 10


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, width): sines and cosines of geometrically spaced frequencies, then two layers."""

    def __init__(self, width: int, frequencies: int = 64) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.hidden = Linear(2 * frequencies, width)
        self.output = Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        ramp = torch.arange(self.frequencies, dtype=torch.float32, device=t.device) / self.frequencies
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * ramp)
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        y: Tensor = self.output(self.hidden(waves, activation="silu"))
        return y


class Block(nn.Module):
    """x (B, N, width), condition (B, width) -> (B, N, width):

        x = x + g1 attention(norm(x) (1 + s1) + b1),   x = x + g2 mlp(norm(x) (1 + s2) + b2)

    where the condition gives b, s and g; the layer that makes them starts at zero, so that a block starts as
    identity.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.modulation = Linear(width, 6 * width)
        self.qkv = Linear(width, 3 * width)
        self.project = Linear(width, width)
        self.expand = Linear(width, 4 * width)
        self.contract = Linear(4 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, 1)
        h = ops.norm(x, eps=1e-6, scale=scale1, shift=shift1)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + gate1[:, None] * self.project(ops.attention(q, k, v).transpose(1, 2).flatten(2))
        h = ops.norm(x, eps=1e-6, scale=scale2, shift=shift2)
        return x + gate2[:, None] * self.contract(self.expand(h, activation="gelu_tanh"))


class DiT(nn.Module):
    """(x (B, channels, size, size), t (B,) in 0..999, labels (B,) int64) -> the predicted velocity, shaped
    like x.

    A label equal to `config.classes` is the null class: no condition, for classifier-free guidance.
    """

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        width, token = config.width, config.channels * config.patch**2
        tokens = (config.size // config.patch) ** 2
        self.patches = Linear(token, width)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.time = TimeEmbedding(width)
        self.label = nn.Embedding(config.classes + 1, width)
        nn.init.normal_(self.label.weight, std=0.02)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.modulation = Linear(width, 2 * width)
        self.output = Linear(width, token)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        patch, side = self.config.patch, self.config.size // self.config.patch
        condition = F.silu(self.time(t) + self.label(labels))
        tokens = F.unfold(x, patch, stride=patch).transpose(1, 2).contiguous()
        h = self.patches(tokens, residual=self.positions.expand(len(x), -1, -1))
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition).chunk(2, 1)
        y = self.output(ops.norm(h, eps=1e-6, scale=scale, shift=shift))
        return F.fold(y.transpose(1, 2), (side * patch, side * patch), patch, stride=patch)

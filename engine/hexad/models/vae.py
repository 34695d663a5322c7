"""A convolutional variational autoencoder (Kingma & Welling 2013, arXiv 1312.6114) with a categorical
decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

import hexad_kernels as ops

from ..layers import Conv, Linear

KEYS: dict[str, str] = {}


@dataclass(frozen=True)
class Config:
    """size: the image's side, a multiple of 2; levels: grey levels; latent: length of z; width: channels;
    dropout: in training, on the feature maps."""

    size: int = 8
    levels: int = 17
    latent: int = 16
    width: int = 32
    groups: int = 8
    dropout: float = 0.25


class Block(nn.Module):
    """x + conv(drop(silu(norm(conv(silu(norm(x))))))), group norms; (B, C, H, W) -> the same."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(config.groups, channels) for _ in range(2)])
        self.convs = nn.ModuleList([Conv(channels, channels) for _ in range(2)])
        self.dropout = nn.Dropout2d(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs[0](norm_silu(self.norms[0], x))
        return x + self.convs[1](self.dropout(norm_silu(self.norms[1], h)))


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU(group norm(x)) in one op; `norm` holds the weights."""
    assert isinstance(norm, nn.GroupNorm)
    return ops.norm(
        x, norm.weight, norm.bias, kind="group", eps=norm.eps, num_groups=norm.num_groups, activation="silu"
    )


class VAE(nn.Module):
    """encode: images (B, 1, size, size) in [-1, 1] -> mean and log-variance of q(z | x), (B, latent) each.
    decode: z (B, latent) -> logits of p(x | z) over the grey levels, (B, levels, size, size)."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config = config or Config()
        side, width = config.size // 2, config.width
        self.shape = (2 * width, side, side)
        features = 2 * width * side * side
        self.stem = Conv(1, width)
        self.encoder_fine = Block(config, width)
        self.down = Conv(width, 2 * width, stride=2)
        self.encoder_coarse = Block(config, 2 * width)
        self.encoder_norm = nn.GroupNorm(config.groups, 2 * width)
        self.posterior = Linear(features, 2 * config.latent)
        self.start = Linear(config.latent, features)
        self.decoder_coarse = Block(config, 2 * width)
        self.up = Conv(2 * width, width)
        self.decoder_fine = Block(config, width)
        self.decoder_norm = nn.GroupNorm(config.groups, width)
        self.output = Conv(width, config.levels)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder_fine(self.stem(images))
        x = norm_silu(self.encoder_norm, self.encoder_coarse(self.down(x)))
        mean, log_variance = self.posterior(x.flatten(1)).chunk(2, 1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        x = self.decoder_coarse(self.start(z).view(-1, *self.shape))
        x = self.decoder_fine(self.up(F.interpolate(x, scale_factor=2.0)))
        logits: Tensor = self.output(norm_silu(self.decoder_norm, x))
        return logits

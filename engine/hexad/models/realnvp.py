"""RealNVP (Dinh, Sohl-Dickstein and Bengio, 2017, "Density estimation using Real NVP") for small images.

Checkerboard couplings at full size, then a squeeze of 2x2 blocks into channels, then channel couplings, then
checkerboard ones again. With z ~ N(0, I):  log p(x) = log N(f(x); 0, I) + log |det df/dx|.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import hexad_kernels as hk
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KEYS: dict[str, str] = {}


@dataclass(frozen=True)
class Config:
    """``couplings``: layers before the squeeze, by channel after it, by checkerboard after it."""

    size: int = 8
    couplings: tuple[int, int, int] = (4, 4, 4)
    hidden: int = 128
    clamp: float = 2.0
    margin: float = 0.05
    dropout: float = 0.2


class Invertible(Protocol):
    """A bijection with its log |det|: ``forward`` towards the noise, ``inverse`` towards the data."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]: ...


class Logit(nn.Module):
    """y = logit(margin + (1 - 2 margin) x): [0, 1] -> R, as the paper does for bounded pixels."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.margin + (1 - 2 * self.margin) * x
        log_p, log_q = torch.log(p), torch.log1p(-p)
        return log_p - log_q, self._log_det(log_p, log_q)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        # Not torch.sigmoid: its bits depend on how many elements there are, so on the batch.
        p = 1 / (1 + torch.exp(-y))
        return (p - self.margin) / (1 - 2 * self.margin), -self._log_det(torch.log(p), torch.log1p(-p))

    def _log_det(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return (math.log(1 - 2 * self.margin) - log_p - log_q).flatten(1).sum(1)


class Standardise(nn.Module):
    """y = (x + bias) exp(log_scale), a pair for each pixel; made to whiten the first data it is shown."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        self.bias.copy_(-x.mean(0))
        self.log_scale.copy_(-torch.log(x.std(0)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x + self.bias) * torch.exp(self.log_scale), self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return y * torch.exp(-self.log_scale) - self.bias, -self.log_scale.sum().expand(len(y))


class Squeeze(nn.Module):
    """2x2 blocks of pixels <-> channels: (B,C,H,W) <-> (B,4C,H/2,W/2)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(y, 2), y.new_zeros(len(y))


class Coupling(nn.Module):
    """Affine coupling: half of x passes, and sets the shift and scale of the rest through a three-layer net.

    At 8x8 pixels the net sees all of the passive half at once. It ends in zeros, so that a new layer is the identity.
    """

    def __init__(self, shape: tuple[int, int, int], split: str, flip: bool, config: Config) -> None:
        super().__init__()
        c, h, w = shape
        self.split, self.flip, self.config = split, flip, config
        if split == "channel":
            first = torch.arange(c) < c - c // 2
            active = (first if flip else ~first)[:, None, None].expand(shape)
            self.parameter_shape = (int(active[:, 0, 0].sum()), h, w)
        else:
            parity = (torch.arange(h)[:, None] + torch.arange(w)) % 2
            active = (parity == (0 if flip else 1)).expand(shape)
            self.parameter_shape = shape
        self.register_buffer("passive", (~active).flatten().nonzero().flatten(), persistent=False)
        self.inputs = nn.Linear(len(self.passive), config.hidden)
        self.middle = nn.Linear(config.hidden, config.hidden)
        self.outputs = nn.Linear(config.hidden, 2 * math.prod(self.parameter_shape))
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def parameters_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The shift and the raw log scale, from the passive half of x (or of y: it is the same)."""
        h = x.flatten(1).index_select(1, self.passive)
        for layer in (self.inputs, self.middle):
            h = F.dropout(
                hk.linear(h, layer.weight, layer.bias, activation="relu"), self.config.dropout, self.training
            )
        shift, log_scale = hk.linear(h, self.outputs.weight, self.outputs.bias).chunk(2, dim=1)
        return shift.reshape(-1, *self.parameter_shape), log_scale.reshape(-1, *self.parameter_shape)

    def couple(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.parameters_of(x)
        return hk.coupling(
            x,
            shift,
            log_scale,
            inverse=inverse,
            split=self.split,
            flip=self.flip,
            scale_map="tanh",
            clamp=self.config.clamp,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(y, inverse=True)


class Flow(nn.Module):
    """Layers in the order of data to noise. x (B,1,H,W) in [0, 1) <-> z (B,*latent_shape)."""

    def __init__(self, layers: list[nn.Module], latent_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.latent_shape = latent_shape

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> z and log |det dz/dx| (B,)."""
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z -> x and log |det dx/dz| (B,)."""
        total = z.new_zeros(len(z))
        for layer in reversed(self.layers):
            z, log_det = layer.inverse(z)  # type: ignore[operator]
            total = total + log_det
        return z, total

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Let each layer that wants to see data before training set itself up, in order."""
        for layer in self.layers:
            if hasattr(layer, "initialise"):
                layer.initialise(x)  # type: ignore[operator]
            x, _ = layer(x)


class RealNVP(Flow):
    """The flow of this file's first paragraph, with alternating halves."""

    def __init__(self, config: Config) -> None:
        full, half = (1, config.size, config.size), (4, config.size // 2, config.size // 2)
        before, channel, after = config.couplings
        layers: list[nn.Module] = [Logit(config.margin), Standardise(*full)]
        layers += [Coupling(full, "checkerboard", i % 2 == 1, config) for i in range(before)]
        layers += [Squeeze()]
        layers += [Coupling(half, "channel", i % 2 == 1, config) for i in range(channel)]
        layers += [Coupling(half, "checkerboard", i % 2 == 1, config) for i in range(after)]
        super().__init__(layers, half)
        self.config = config

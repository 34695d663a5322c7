"""Glow (Kingma and Dhariwal, 2018, "Glow: Generative Flow with Invertible 1x1 Convolutions") for small images.

Each level squeezes 2x2 blocks into channels and takes ``steps`` steps of actnorm, invertible 1x1 convolution and
affine coupling. Actnorm is folded into the convolution, y = W exp(s) (x + b), and its inverse is computed in
fp64, both once for fixed weights.
"""

from dataclasses import dataclass

import hexad_kernels as hk
import torch
import torch.nn.functional as F
from hexad_kernels.invconv import fold_actnorm, invert_affine
from torch import Tensor, nn

from .realnvp import Flow, Logit, Squeeze, Standardise

KEYS: dict[str, str] = {}


@dataclass(frozen=True)
class Config:
    """``steps``: how many at each level."""

    size: int = 8
    steps: tuple[int, ...] = (6, 6)
    hidden: int = 64
    clamp: float = 2.0
    margin: float = 0.05
    dropout: float = 0.2


class Mix(nn.Module):
    """Actnorm and the 1x1 convolution after it: y = W (exp(log_scale) (x + bias)) at every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0].contiguous())
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self._kept: tuple[object, tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        self.bias.copy_(-x.mean((0, 2, 3)))
        self.log_scale.copy_(-torch.log(x.std((0, 2, 3))))

    def folded(self) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(W, b, log det per pixel) of the folded map and (W, b) of its inverse; kept until a parameter changes."""
        own = (self.weight, self.log_scale, self.bias)
        state = [(p.data_ptr(), p._version, p.dtype) for p in own]
        if self._kept is None or self._kept[0] != state:
            with torch.no_grad():
                there = fold_actnorm(*own)
                self._kept = state, there, invert_affine(there[0], there[1])
        return self._kept[1:]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        learning = torch.is_grad_enabled() and self.weight.requires_grad
        if learning:
            weight, bias, log_det = fold_actnorm(self.weight, self.log_scale, self.bias)
        else:
            weight, bias, log_det = self.folded()[0]
        return hk.invconv(x, weight, bias), self._spread(log_det, x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        (_, _, log_det), (weight, bias) = self.folded()
        return hk.invconv(y, weight, bias), -self._spread(log_det, y)

    @staticmethod
    def _spread(log_det: Tensor, x: Tensor) -> Tensor:
        return (log_det * (x.shape[2] * x.shape[3])).to(x.dtype).expand(len(x))


class Conv3x3(nn.Module):
    """A 3x3 convolution as a linear map of 3x3 patches, so that an image's bits do not depend on the batch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 9 * inputs) / (9 * inputs) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        """x (B,Cin,H,W) -> (B,H,W,Cout)."""
        patches = F.unfold(x, 3, padding=1).mT.unflatten(1, x.shape[2:])
        return hk.linear(patches, self.weight, self.bias, activation=activation)


class Coupling(nn.Module):
    """Affine coupling of the second half of the channels on the first, through 3x3, 1x1, 3x3 convolutions.

    The convnet is told where it is by a learned offset per place, and ends in zeros.
    """

    def __init__(self, shape: tuple[int, int, int], config: Config) -> None:
        super().__init__()
        c, h, w = shape
        self.passive, self.config = c - c // 2, config
        self.inputs = Conv3x3(self.passive, config.hidden)
        self.place = nn.Parameter(torch.zeros(self.passive, h, w))
        self.middle = nn.Linear(config.hidden, config.hidden)
        self.outputs = Conv3x3(config.hidden, 2 * (c // 2))
        nn.init.zeros_(self.outputs.weight)

    def couple(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        rate = self.config.dropout
        h = self.inputs(x[:, : self.passive] + self.place, "relu")
        h = F.dropout(h, rate, self.training)
        h = F.dropout(hk.linear(h, self.middle.weight, self.middle.bias, activation="relu"), rate, self.training)
        shift, log_scale = self.outputs(h.movedim(-1, 1)).movedim(-1, 1).chunk(2, dim=1)
        return hk.coupling(
            x, shift, log_scale, inverse=inverse, scale_map="tanh", clamp=self.config.clamp
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.couple(y, inverse=True)


class Glow(Flow):
    """The flow of this file's first paragraph; nothing is factored out between levels, as images are small."""

    def __init__(self, config: Config) -> None:
        shape = (1, config.size, config.size)
        layers: list[nn.Module] = [Logit(config.margin), Standardise(*shape)]
        for steps in config.steps:
            shape = (4 * shape[0], shape[1] // 2, shape[2] // 2)
            layers.append(Squeeze())
            for _ in range(steps):
                layers += [Mix(shape[0]), Coupling(shape, config)]
        super().__init__(layers, shape)
        self.config = config

"""Gated PixelCNN (van den Oord et al., 2016, "Conditional Image Generation with PixelCNN Decoders").

p(x) = prod_i p(x_i | x_<i) over pixels in raster order, a softmax over grey levels each. A vertical stack
sees all rows above a pixel, a horizontal stack the pixels to its left; every layer feeds the first into the
second.

Every step here exists for a whole image, for one row (``row``), and where it is causal within the row for one
pixel (``row`` and ``col``), and gives the same bits in each. Masked convolutions promise that; all else is
IEEE arithmetic, which rounds alike wherever an element stands. That is why the gate's sigmoids are algebraic:
vectorised exp may round differently in the tail of a loop, so it depends on how many elements there are. And they are
written with rsqrt, which torch computes as 1 / sqrt, both rounded right; its sqrt may be off by an ulp.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hexad_kernels as hk

KEYS: dict[str, str] = {}
PLANES = 2


@dataclass(frozen=True)
class Config:
    """``views``: how many ways training may show an image, the first being as it is."""

    levels: int = 17
    size: int = 8
    channels: int = 32
    layers: int = 5
    kernel: int = 3
    views: int = 5
    dropout: float = 0.2


def gate(x: Tensor) -> Tensor:
    """f(a) (1 + f(b/2)) / 2 with f(t) = t / sqrt(1 + t^2): the paper's tanh(a) sigmoid(b), algebraic."""
    a, b = x.chunk(2, dim=1)
    b = 0.5 * b
    return a * torch.rsqrt(1 + a * a) * (0.5 + 0.5 * (b * torch.rsqrt(1 + b * b)))


def at(x: Tensor, row: int | None, col: int | None) -> Tensor:
    """x (..., H, W), or its row (..., W), or its pixel (...)."""
    if row is None:
        return x
    return x[..., row, :] if col is None else x[..., row, col]


class MaskedConv(nn.Module):
    """``hexad_kernels.maskedconv`` with its weights (out, in, height, width)."""

    def __init__(self, inputs: int, outputs: int, height: int, width: int, mask: str, gain: float = 1.0) -> None:
        super().__init__()
        in_row = {"A": width // 2, "B": width // 2 + 1, "above": 0, "above_or_at": width}
        taps = (height // 2) * width + in_row[mask]
        std = gain / (inputs * taps) ** 0.5
        self.mask = mask
        self.weight = nn.Parameter(torch.randn(outputs, inputs, height, width) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, row: int | None = None, col: int | None = None) -> Tensor:
        return hk.maskedconv(x, self.weight, self.bias, mask=self.mask, row=row, col=col)


class Layer(nn.Module):
    """One gated layer. The first one sees the image itself, hence strict masks and no residual."""

    def __init__(self, config: Config, first: bool) -> None:
        super().__init__()
        c, k, size = config.channels, config.kernel, config.size
        inputs = PLANES if first else c
        self.first, self.dropout = first, config.dropout
        self.vertical_conv = MaskedConv(inputs, 2 * c, k, k, "above" if first else "above_or_at")
        self.down = MaskedConv(2 * c, 2 * c, 1, 1, "B")
        self.horizontal_conv = MaskedConv(inputs, 2 * c, 1, k, "A" if first else "B")
        self.out = MaskedConv(c, c, 1, 1, "B", gain=0.5)
        self.vertical_place = nn.Parameter(torch.zeros(2 * c, size, size))
        self.horizontal_place = nn.Parameter(torch.zeros(2 * c, size, size))
        # Row 0 is the image as it is: always zero, so generating need not look it up.
        self.view = nn.Embedding(config.views, 4 * c, padding_idx=0)
        nn.init.zeros_(self.view.weight)

    def vertical(self, v: Tensor, row: int | None = None, view: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v (B,Cin,H,W) -> the layer's v (B,C,H,W) and what goes down (B,2C,H,W), or a row of both."""
        x = self.vertical_conv(v, row) + at(self.vertical_place, row, None)
        if view is not None:
            x = x + self.view(view)[:, : x.shape[1], None, None]
        image = x if row is None else x.unsqueeze(2)
        down = self.down(image, None if row is None else 0)
        y = F.dropout(gate(x), self.dropout, self.training)
        return (y if self.first else y + at(v, row, None)), down

    def horizontal(
        self,
        h: Tensor,
        down: Tensor,
        row: int | None = None,
        col: int | None = None,
        view: Tensor | None = None,
    ) -> Tensor:
        """h (B,Cin,H,W) and what came down at the place asked for -> the layer's h, or its pixel (B,C)."""
        x = self.horizontal_conv(h, row, col) + down + at(self.horizontal_place, row, col)
        if view is not None:
            x = x + self.view(view)[:, x.shape[1] :, None, None]
        y = pointwise(self.out, F.dropout(gate(x), self.dropout, self.training))
        return y if self.first else y + at(h, row, col)


def pointwise(conv: MaskedConv, x: Tensor) -> Tensor:
    """A 1x1 convolution of x (B,C,H,W), or of the single pixel (B,C)."""
    return conv(x) if x.ndim == 4 else conv(x[:, :, None, None], 0, 0)


class PixelCNN(nn.Module):
    """Grey levels (B,H,W) -> logits (B,levels,H,W); those of a pixel depend on earlier pixels only."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, i == 0) for i in range(config.layers))
        self.head = MaskedConv(config.channels, 2 * config.channels, 1, 1, "B")
        self.logits = MaskedConv(config.channels, config.levels, 1, 1, "B", gain=0.1)
        self.place = nn.Parameter(torch.zeros(config.levels, config.size, config.size))

    def planes(self, x: Tensor) -> Tensor:
        """Levels (B,...) -> (B,2,...): grey from -1 to 1, and ones, so that padding differs from any grey."""
        grey = x.to(self.place.dtype) * (2 / (self.config.levels - 1)) - 1
        return torch.stack([grey, torch.ones_like(grey)], dim=1)

    def read_out(self, h: Tensor, row: int | None = None, col: int | None = None) -> Tensor:
        """The last h, whole (B,C,H,W) or a pixel of it (B,C) -> logits, whole or of the pixel."""
        h = F.dropout(gate(pointwise(self.head, h)), self.config.dropout, self.training)
        return pointwise(self.logits, h) + at(self.place, row, col)

    def network(self) -> dict[str, int]:
        """What ``hexad_kernels.gated_pixelcnn`` wants to know of it, with its ``packed`` weights."""
        config = self.config
        return {
            "levels": config.levels,
            "channels": config.channels,
            "layers": config.layers,
            "kernel": config.kernel,
        }

    def packed(self) -> Tensor:
        """The weights as ``hexad_kernels.gated_pixelcnn`` reads them: of the images as they are, view 0."""
        convs = ("vertical_conv", "vertical_place"), ("down", ""), ("horizontal_conv", "horizontal_place"), ("out", "")
        layers = []
        for layer in self.layers:
            tensors: list[Tensor] = []
            for conv, place in convs:
                tensors += [getattr(layer, conv).weight, getattr(layer, conv).bias]
                tensors += [getattr(layer, place)] if place else []
            layers.append(hk.PixelCNNLayer(*tensors))
        head, logits = self.head, self.logits
        read_out = hk.PixelCNNReadOut(head.weight, head.bias, logits.weight, logits.bias, self.place)
        return hk.pack_gated_pixelcnn(layers, read_out)

    def forward(self, x: Tensor, view: Tensor | None = None) -> Tensor:
        v = h = self.planes(x)
        for layer in self.layers:
            v, down = layer.vertical(v, view=view)  # type: ignore[operator]
            h = layer.horizontal(h, down, view=view)  # type: ignore[operator]
        return self.read_out(h)

"""Layers that several models share, with the work done by ops. Weights are laid out and named as torch's
own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

import hexad_kernels as ops


class Linear(nn.Linear):
    """y = activation(x W^T + b) + residual, for x (..., in_features); see `hexad_kernels.linear`."""

    def forward(self, x: Tensor, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, activation=activation, residual=residual)


class Conv(nn.Conv2d):
    """A 'same' convolution with its activation: (B, Cin, H, W) -> (B, Cout, ceil(H / stride), ceil(W /
    stride)).

    In eval mode it is `hexad_kernels.linear` over the patches, so that an image's bits depend on that image
    alone. Training uses torch's convolution: the same numbers up to rounding, with a quicker backward.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        assert self.bias is not None
        return convolve(x, self.weight, self.bias, self.stride[0], activation, self.training)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    activation: str | None = None,
    training: bool = False,
) -> Tensor:
    """activation(weight * x + bias) with 'same' padding; see `Conv`."""
    kernel = weight.shape[-1]
    if training:
        return activate(F.conv2d(x, weight, bias, stride, padding=kernel // 2), activation)
    height, width = (-(-side // stride) for side in x.shape[2:])
    patches = F.unfold(x, kernel, padding=kernel // 2, stride=stride).transpose(1, 2)
    y = ops.linear(patches.contiguous(), weight.flatten(1), bias, activation=activation)
    return y.transpose(1, 2).reshape(len(x), -1, height, width)


def activate(x: Tensor, activation: str | None) -> Tensor:
    """The elementwise functions that `hexad_kernels.linear` applies, in plain torch, for training."""
    if activation is None:
        return x
    if activation == "silu":
        return F.silu(x)
    if activation == "tanh":
        return x.tanh()
    raise ValueError(f"activation: got {activation!r}, want None, 'silu' or 'tanh'")

"""What linear does with a product: activation or gate, residual."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[Any, int] = {
    None: 0,
    "relu": 1,
    "gelu": 2,
    "gelu_tanh": 3,
    "silu": 4,
    "tanh": 5,
    "sigmoid": 6,
    "silu_gate": 7,
    "gelu_gate": 8,
}
GATES = (7, 8)
_FUNCTIONS = (
    lambda z: z,
    torch.relu,
    F.gelu,
    partial(F.gelu, approximate="tanh"),
    F.silu,
    torch.tanh,
    torch.sigmoid,
    F.silu,
    F.gelu,
)


def finished(product: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None, dtype: Any) -> Tensor:
    """act(product + bias) + residual in plain torch."""
    y = product if bias is None else product + bias.to(product.dtype)
    if activation in GATES:
        gate, up = y.chunk(2, -1)
        y = _FUNCTIONS[activation](gate) * up
    else:
        y = _FUNCTIONS[activation](y)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return y.to(dtype)

"""linear: a matrix product with its bias, activation and residual in one pass.

    y = act(x W^T + b) + residual

    relu        max(z, 0)                      silu     z * sigmoid(z)
    gelu        z * Phi(z), Phi the normal distribution function (erf)
    gelu_tanh   z * (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2
    tanh, sigmoid

Sums are fp32, with one rounding to x's dtype at the very end. A row's bits depend on that row alone.

Papers: Hendrycks & Gimpel 2016 (GELU, arXiv 1606.08415), Elfwing et al. 2017 (SiLU, 1702.03118).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hexad_kernels import check, native
from hexad_kernels.op import Op

ACTIVATIONS: dict[Any, int] = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "tanh": 5, "sigmoid": 6}
_FUNCTIONS = (
    lambda z: z,
    torch.relu,
    F.gelu,
    partial(F.gelu, approximate="tanh"),
    F.silu,
    torch.tanh,
    torch.sigmoid,
)


def contract(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None) -> tuple[Tensor]:
    check.tensor(x, "x")
    if x.ndim < 1:
        raise ValueError("x: got a scalar, wants (..., in features)")
    check.tensor(weight, "weight", rank=2)
    check.like(weight, "weight", x, "x")
    *leading, inputs = x.shape
    outputs, columns = weight.shape
    if columns != inputs:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, wants (any, {inputs}) = x's last dimension")
    if bias is not None:
        check.operand(bias, "bias", (outputs,), x, "x", "weight's rows")
    if residual is not None:
        check.operand(residual, "residual", (*leading, outputs), x, "x", "the output's shape")
    return (x.new_empty(*leading, outputs),)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None) -> Tensor:
    stat = check.statistics_dtype(x.dtype)
    y = F.linear(x.to(stat), weight.to(stat), None if bias is None else bias.to(stat))
    y = _FUNCTIONS[activation](y)
    if residual is not None:
        y = y + residual.to(stat)
    return y.to(x.dtype)


def _native(
    outputs: tuple[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None
) -> None:
    native.C.linear(
        check.matrix(x),
        check.matrix(weight),
        bias if bias is None or bias.is_contiguous() else bias.contiguous(),
        None if residual is None else check.matrix(residual),
        outputs[0],
        activation,
    )


_op = Op(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, int activation, Tensor? residual) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    gradients=(0, 1, 2, 4),
)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(x W^T + bias) + residual.

    x          (..., K); float32, bfloat16 (float16, float64 through the reference)
    weight     (N, K)
    bias       (N,)
    activation None, "relu", "gelu", "gelu_tanh", "silu", "tanh" or "sigmoid"
    residual   (..., N)
    Returns (..., N) like x. Leading dimensions may be absent, empty or strided.
    Differentiable in x, weight, bias, residual. ValueError or TypeError names a wrong argument.
    """
    return _op(x, weight, bias, check.choice(activation, "activation", ACTIVATIONS), residual)

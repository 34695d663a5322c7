"""invconv: the invertible 1x1 convolution of Glow, with its actnorm folded in.

    y[b, o, s] = bias[o] + sum_c weight[o, c] x[b, c, s]

Channels are summed in runs of 64, in order, one rounding a term, and the runs on top of the bias: an output's
bits depend on its own pixel only. `fold_actnorm` makes one weight of an actnorm and the convolution after it,
`invert_affine` the weight of the inverse map; both compute in float64.

Paper: Kingma & Dhariwal 2018 (Glow, arXiv 1807.03039).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hexad_kernels import check, memory, native
from hexad_kernels.op import NATIVE_DTYPES, Op

MOST_CHANNELS = 1024


def contract(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    check.tensor(x, "x")
    if x.ndim < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, wants (batch, channels, *spatial)")
    c = x.shape[1]
    check.operand(weight, "weight", (c, c), x, "x", "x's channels, twice")
    if bias is not None:
        check.operand(bias, "bias", (c,), x, "x", "x's channels")
    return (memory.empty_like(x),)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    stat = check.statistics_dtype(x.dtype)
    flat = x.to(stat).reshape(*x.shape[:2], x[0, 0].numel() if x.shape[0] and x.shape[1] else 0)
    y = torch.matmul(weight.to(stat), flat)
    if bias is not None:
        y = y + bias.to(stat)[:, None]
    return y.reshape(x.shape).to(x.dtype)


def _refuses(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    return f"{x.shape[1]} channels (its kernel takes up to {MOST_CHANNELS})" if x.shape[1] > MOST_CHANNELS else None


def _native(outputs: tuple[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dtype != torch.float32:
        weight, bias = weight.float(), None if bias is None else bias.float()
    native.C.invconv(x.contiguous(), weight.contiguous(), bias if bias is None else bias.contiguous(), outputs[0])


_op = Op(
    "invconv",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=NATIVE_DTYPES,
    gradients=(0, 1, 2),
    refuses=_refuses,
    cuda_refuses=_refuses,
    batch=lambda *_: {0: 2},
    cast="widest",
    cast_at=(0, 1, 2),
)


def invconv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The 1x1 convolution with a square weight.

    x       (B, C, *spatial); float32, bfloat16 (float16, float64 through the reference)
    weight  (C, C), bias (C,): x's dtype
    Returns y like x; sums in float32. Differentiable in x, weight, bias.
    """
    return _op(x, weight, bias)


def _square(weight: Tensor) -> int:
    check.tensor(weight, "weight", rank=2)
    check.shape(weight, "weight", (weight.shape[0], weight.shape[0]), "a square matrix")
    return weight.shape[0]


def _vector(value: Tensor, name: str, weight: Tensor) -> Tensor:
    check.operand(value, name, (weight.shape[0],), weight, "weight", "weight's channels")
    return value.double()


def _inverse(weight: Tensor) -> Tensor:
    """The inverse in float64, or ValueError where float64 cannot tell the matrix from a singular one."""
    w = weight.double()
    inverse, info = torch.linalg.inv_ex(w)
    if w.numel():
        condition = float(torch.linalg.matrix_norm(w.detach(), 1) * torch.linalg.matrix_norm(inverse.detach(), 1))
        if int(info) != 0 or not condition * len(w) < 2.0**52:
            raise ValueError(f"weight: got a singular {len(w)}x{len(w)} matrix (condition {condition:.1e}), wants one"
                             " with an inverse")  # fmt: skip
    return inverse


def fold_actnorm(weight: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One affine map of y = weight (exp(log_scale) (x + bias)), an actnorm and the 1x1 convolution after it.

    weight (C, C); log_scale, bias (C,). Returns W' (C, C), b' (C,) and the log-determinant per pixel,
    sum(log_scale) + ln |det weight|, a scalar: y = W' x + b'. Differentiable. Raises ValueError for a
    singular weight.
    """
    _square(weight)
    s, b = _vector(log_scale, "log_scale", weight), _vector(bias, "bias", weight)
    _inverse(weight.detach())
    w = weight.double()
    folded = w * torch.exp(s)
    log_det = s.sum() + torch.linalg.slogdet(w).logabsdet
    return folded.to(weight.dtype), (folded @ b).to(weight.dtype), log_det.to(check.statistics_dtype(weight.dtype))


def invert_affine(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of y = weight x + bias: W' = weight^-1 (C, C) and b' = -weight^-1 bias (C,).

    Raises ValueError for a singular weight.
    """
    _square(weight)
    b = _vector(bias, "bias", weight)
    inverse = _inverse(weight)
    return inverse.to(weight.dtype), -(inverse @ b).to(weight.dtype)

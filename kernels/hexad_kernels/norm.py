"""norm: layer, RMS and group normalisation, with modulation and SiLU in the same pass.

    layer   n = (x - mean) / sqrt(var + eps)     over the last dimension, var the mean squared deviation
    rms     n = x / sqrt(mean(x^2) + eps)        over the last dimension
    group   n as layer, over each group of C / num_groups channels and all of space

    y = act((n * weight + bias) * (1 + scale) + shift)

weight and bias belong to a feature (a channel for group); scale and shift to a feature of a batch row: the
modulation of adaptive normalisation. Statistics are fp32, with one rounding to x's dtype at the end.

Papers: Ba et al. 2016 (layer, arXiv 1607.06450), Zhang & Sennrich 2019 (RMS, 1910.07467), Wu & He 2018 (group,
1803.08494), Peebles & Xie 2022 (modulation in DiT, 2212.09748).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hexad_kernels import check, memory, native
from hexad_kernels.op import NATIVE_DTYPES, Op

KINDS = {"layer": 0, "rms": 1, "group": 2}
ACTIVATIONS: dict[Any, int] = {None: 0, "silu": 1}
GROUP = 2


def contract(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: int,
    eps: float,
    num_groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
) -> tuple[Tensor]:
    check.tensor(x, "x")
    size, group = x.shape, kind == GROUP
    if len(size) < (2 if group or scale is not None or shift is not None else 1):
        wanted = "(batch, channels, *spatial)" if group else "(batch, ..., features)"
        raise ValueError(f"x: got shape {tuple(size)}, wants {wanted}")
    features = size[1 if group else -1]
    if group:
        if not num_groups or features % num_groups:
            raise ValueError(f"num_groups: got {num_groups or None}, wants a divisor of x's {features} channels")
    elif num_groups:
        raise ValueError(f"num_groups: got {num_groups}, wants None unless kind is 'group'")
    if not eps >= 0:
        raise ValueError(f"eps: got {eps}, wants a number >= 0")
    meaning = "x's channels" if group else "x's features"
    if weight is not None:
        check.operand(weight, "weight", (features,), x, "x", meaning)
    if bias is not None:
        check.operand(bias, "bias", (features,), x, "x", meaning)
    if scale is not None:
        check.operand(scale, "scale", (size[0], features), x, "x", f"x's batch and {meaning}")
    if shift is not None:
        check.operand(shift, "shift", (size[0], features), x, "x", f"x's batch and {meaning}")
    return (memory.empty_like(x),)


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: int,
    eps: float,
    num_groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
) -> Tensor:
    stat = check.statistics_dtype(x.dtype)
    w, b, scale, shift = (None if t is None else t.to(stat) for t in (weight, bias, scale, shift))
    if kind == GROUP:
        # torch's backward fails on a bias without a weight.
        y = torch.group_norm(x.to(stat), num_groups, w, None if w is None else b, eps)
        y = y + b.reshape(-1, *[1] * (x.ndim - 2)) if w is None and b is not None else y
        broadcast = (x.shape[0], x.shape[1], *[1] * (x.ndim - 2))
    else:
        size = (x.shape[-1],)
        y = F.layer_norm(x.to(stat), size, w, b, eps) if kind == 0 else F.rms_norm(x.to(stat), size, w, eps)
        y = y + b if kind == 1 and b is not None else y
        broadcast = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
    if scale is not None:
        y = y * (1 + scale.reshape(broadcast))
    if shift is not None:
        y = y + shift.reshape(broadcast)
    return (F.silu(y) if activation else y).to(x.dtype)


def _native(
    outputs: tuple[Tensor],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kind: int,
    eps: float,
    num_groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: int,
) -> None:
    native.C.norm(
        x.contiguous() if kind == GROUP else check.matrix(x),
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        None if scale is None else check.matrix(scale),
        None if shift is None else check.matrix(shift),
        outputs[0],
        kind,
        eps,
        num_groups,
        activation,
    )


_op = Op(
    "norm",
    "(Tensor x, Tensor? weight, Tensor? bias, int kind, float eps, int num_groups, Tensor? scale, Tensor? shift,"
    " int activation) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=NATIVE_DTYPES,
    gradients=(0, 1, 2, 6, 7),
    batch=lambda *_: {0: 2, 6: 2, 7: 2},
    cast="widest",
    cast_at=(0, 1, 2, 6, 7),
)


def norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: str = "layer",
    eps: float = 1e-5,
    num_groups: int | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Layer, RMS or group normalisation with optional affine, modulation and SiLU.

    x             (..., D) for "layer" and "rms", (B, C, *spatial) for "group"; float32, bfloat16 (float16, float64
                  through the reference)
    weight, bias  (D,), or (C,) for "group"; None: 1 and 0
    num_groups    for "group": a divisor of C
    scale, shift  (B, D), or (B, C) for "group": y * (1 + scale) + shift, the same at every place of a batch row
    activation    None or "silu"
    Returns x's shape, contiguous. Differentiable in x, weight, bias, scale, shift.
    ValueError or TypeError names a wrong argument.
    """
    if num_groups is not None and check.integer(num_groups, "num_groups") < 1:
        raise ValueError(f"num_groups: got {num_groups}, wants a positive number")
    return _op(
        x, weight, bias, check.choice(kind, "kind", KINDS), eps if type(eps) is float else check.number(eps, "eps"),
        num_groups or 0, scale, shift, check.choice(activation, "activation", ACTIVATIONS),
    )  # fmt: skip

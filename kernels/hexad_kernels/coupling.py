"""coupling: the invertible layer of NICE, RealNVP and Glow.

    forward   y_a = x_a * exp(s) + t        inverse   y_a = (x_a - t) * exp(-s)
              y_p = x_p                               y_p = x_p
    log_det = +sum(s) forward, -sum(s) inverse, over the active elements of a row

x is split into a passive half p, which conditions, and an active half a, which moves. s comes from the
conditioner's raw output r through a scale map:

    "exp"      s = r
    "tanh"     s = clamp * tanh(r / clamp)       bounded: |s| < clamp
    "sigmoid"  s = log sigmoid(r + 2)            Glow's: exp(s) < 1

Papers: Dinh et al. 2014 (NICE, arXiv 1410.8516), Dinh et al. 2016 (RealNVP, 1605.08803), Kingma &
Dhariwal 2018 (Glow, 1807.03039).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hexad_kernels import check, memory, native
from hexad_kernels.op import NATIVE_DTYPES, Op

SPLITS = {"channel": 0, "checkerboard": 1}
PIECE = 4096  # active elements of a row that a CUDA block takes, as in csrc/op/coupling.h
SCALE_MAPS = {"exp": 0, "tanh": 1, "sigmoid": 2}


def active_channels(channels: int, flip: bool) -> tuple[int, int]:
    """First active channel and how many are active: the last C//2, or with `flip` the first C - C//2."""
    return (0, channels - channels // 2) if flip else (channels - channels // 2, channels // 2)


def checkerboard(x: Tensor, flip: bool) -> Tensor:
    """1 where an element of x is active, shaped to broadcast against x."""
    sizes = x.shape[2:] if x.ndim > 2 else x.shape[1:]
    place = torch.zeros(sizes, dtype=torch.int64, device=x.device)
    for d, size in enumerate(sizes):
        place = place + torch.arange(size, device=x.device).view(-1, *[1] * (len(sizes) - d - 1))
    return (place % 2 == (0 if flip else 1)).to(x.dtype)


def check_operands(
    x: Tensor, name: str, shift: Tensor, log_scale: Tensor | None, split: int, flip: bool, scale_map: int, clamp: float
) -> None:
    check.tensor(x, name)
    size = x.shape
    if len(size) < 2:
        raise ValueError(f"{name}: got shape {tuple(size)}, wants (batch, channels, *spatial) or (batch, features)")
    if split == 0:
        want, meaning = (size[0], active_channels(size[1], flip)[1], *size[2:]), f"the active half of {name}"
    else:
        want, meaning = size, f"{name}'s shape"
        if len(size) not in (2, 4):
            raise ValueError(f"{name}: got {len(size)} dimensions, wants 2 or 4 for a checkerboard split")
    check.operand(shift, "shift", want, x, name, meaning)
    if log_scale is not None:
        check.operand(log_scale, "log_scale", want, x, name, meaning)
    if scale_map == 1 and not clamp > 0:
        raise ValueError(f"clamp: got {clamp}, wants a positive number")


def contract(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor | None,
    inverse: bool,
    split: int,
    flip: bool,
    scale_map: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    check_operands(x, "x", shift, log_scale, split, flip, scale_map, clamp)
    return memory.empty_like(x), check.empty_statistics(x, x.shape[0])


def reference(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor | None,
    inverse: bool,
    split: int,
    flip: bool,
    scale_map: int,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    stat = check.statistics_dtype(x.dtype)
    v, t = x.to(stat), shift.to(stat)
    r = torch.zeros_like(t) if log_scale is None else log_scale.to(stat)
    if log_scale is not None and scale_map == 1:
        r = clamp * torch.tanh(r / clamp)
    elif log_scale is not None and scale_map == 2:
        r = torch.nn.functional.logsigmoid(r + 2)
    if split == 1:
        active = checkerboard(v, flip).bool()
        s = torch.where(active, r, 0.0)
        moved = (v - t) * torch.exp(-s) if inverse else v * torch.exp(s) + t
        y = torch.where(active, moved, v)
    else:
        s = r
        first, count = active_channels(x.shape[1], flip)
        a = v[:, first : first + count]
        a = (a - t) * torch.exp(-r) if inverse else a * torch.exp(r) + t
        y = torch.cat([v[:, :first], a, v[:, first + count :]], dim=1)
    log_det = s.flatten(1).sum(1)
    return y.to(x.dtype), -log_det if inverse else log_det


def rows(value: Tensor | None) -> Tensor | None:
    """`value` itself if the elements of each value[i] lie in a row, as in a chunk of a larger tensor; else a copy."""
    if value is None or value.is_contiguous():
        return value
    step = 1
    for size, stride in zip(value.shape[:0:-1], value.stride()[:0:-1]):
        if stride != step and size != 1:
            return value.contiguous()
        step *= size
    return value


def _native(outputs: tuple[Tensor, Tensor], x: Tensor, shift: Tensor, log_scale: Tensor | None, *options: Any) -> None:
    partials = counters = None
    if log_scale is not None and not native.on_cpu(x):
        row = shift[0].numel() if len(shift) else 0
        if row > PIECE:
            partials = x.new_empty(len(x) * -(-row // PIECE), dtype=torch.float64)
            counters = memory.counters(x, len(x))
    native.C.coupling(rows(x), rows(shift), rows(log_scale), *outputs, partials, counters, *options)


def _backward(
    grads: list[Tensor | None], needed: list[bool], args: tuple[Any, ...], outputs: list[Tensor]
) -> list[Tensor]:
    """By the op coupling_backward."""
    from hexad_kernels.coupling_backward import gradients

    return [grad for grad, need in zip(gradients(grads, args, outputs), needed) if need]


def _recover(args: tuple[Any, ...], outputs: list[Tensor]) -> tuple[Any, ...]:
    _, shift, log_scale, inverse, *options = args
    return reference(outputs[0], shift, log_scale, not inverse, *options)[0], *args[1:]


_op = Op(
    "coupling",
    "(Tensor x, Tensor shift, Tensor? log_scale, bool inverse, int split, bool flip, int scale_map, float clamp)"
    " -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=NATIVE_DTYPES,
    gradients=(0, 1, 2),
    backward=_backward,
    backward_on=("cpu", "cuda", "cuda-emulated"),
    recover=_recover,
)


def coupling(
    x: Tensor,
    shift: Tensor,
    log_scale: Tensor | None = None,
    *,
    inverse: bool = False,
    split: str = "channel",
    flip: bool = False,
    scale_map: str = "exp",
    clamp: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Affine (or, without `log_scale`, additive) coupling and its log-determinant.

    x          (B, C, *spatial) or (B, D); float32, bfloat16 (float16, float64 through the reference)
    shift      t, the active half's shape: (B, C_active, *spatial) for split="channel", x's for "checkerboard"
    log_scale  r, like shift; None: additive, s = 0
    split      "channel": the last C//2 channels are active (flip: the first C - C//2);
               "checkerboard": active where (h + w) is odd (flip: even); for (B, D), the odd features
    Returns y like x, log_det (B,) float32 (float64 for float64). Views of shift and log_scale are fine.
    Differentiable in x, shift, log_scale. In float32 and float64 y is kept for that, not x: a stack of couplings
    holds what its layers give and nothing more. The price is y - t in place of x exp(s), which has lost what y
    rounded away where t is much the larger.
    """
    if type(clamp) is not float:
        clamp = check.number(clamp, "clamp")
    return _op(
        x, shift, log_scale, inverse, check.choice(split, "split", SPLITS), flip,
        check.choice(scale_map, "scale_map", SCALE_MAPS), clamp,
    )  # fmt: skip

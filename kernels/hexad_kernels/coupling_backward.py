"""coupling_backward: the gradients of coupling, from what it gave (y) or from what it was given (x).

    forward   grad_x = g exp(s)     grad_t = g           grad_s = g (y - t) + l      y - t = x exp(s)
    inverse   grad_x = g exp(-s)    grad_t = -grad_x     grad_s = -g y - l           y = (x - t) exp(-s)
    grad_r = grad_s ds/dr           ds/dr of the scale maps: 1,  1 - (s / clamp)^2,  sigmoid(-(r + 2))

over the active elements, g and l being the gradients of y and of log_det; passive elements hand g through, and
parameters at passive places of a checkerboard get 0, whatever they hold.

Paper: Dinh et al. 2016 (RealNVP, arXiv 1605.08803).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hexad_kernels import check, memory, native
from hexad_kernels.coupling import SCALE_MAPS, SPLITS, active_channels, check_operands, checkerboard, rows
from hexad_kernels.op import NATIVE_DTYPES, Op


def contract(
    grad_y: Tensor | None, grad_log_det: Tensor | None, value: Tensor, shift: Tensor, log_scale: Tensor | None,
    from_input: bool, inverse: bool, split: int, flip: bool, scale_map: int, clamp: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    check_operands(value, "value", shift, log_scale, split, flip, scale_map, clamp)
    if grad_y is not None:
        check.operand(grad_y, "grad_y", value.shape, value, "value", "value's shape")
    if grad_log_det is not None:
        check.tensor(grad_log_det, "grad_log_det", rank=1, dtypes=(check.statistics_dtype(value.dtype),))
        check.like(grad_log_det, "grad_log_det", value, "value", dtype=False)
        check.shape(grad_log_det, "grad_log_det", value.shape[:1], "a number for each row of value")
    return tuple(memory.empty_like(t) for t in (value, shift, log_scale) if t is not None)


def reference(
    grad_y: Tensor | None, grad_log_det: Tensor | None, value: Tensor, shift: Tensor, log_scale: Tensor | None,
    from_input: bool, inverse: bool, split: int, flip: bool, scale_map: int, clamp: float,
) -> list[Tensor]:  # fmt: skip
    stat = check.statistics_dtype(value.dtype)
    v, t = value.to(stat), shift.to(stat)
    g = torch.zeros_like(v) if grad_y is None else grad_y.to(stat)
    r = torch.zeros_like(t) if log_scale is None else log_scale.to(stat)
    s, slope = r, torch.ones_like(r)
    if log_scale is not None and scale_map == 1:
        bounded = torch.tanh(r / clamp)
        s, slope = clamp * bounded, 1 - bounded * bounded
    elif log_scale is not None and scale_map == 2:
        s, slope = torch.nn.functional.logsigmoid(r + 2), torch.sigmoid(-(r + 2))
    first, count = (0, v.shape[1]) if split == 1 else active_channels(v.shape[1], flip)
    va, ga = v[:, first : first + count], g[:, first : first + count]
    factor = torch.exp(-s if inverse else s)
    grad_x = ga * factor
    sum_s = 0.0 if grad_log_det is None else grad_log_det.to(stat).view(-1, *[1] * (v.ndim - 1))
    if inverse:
        grad_shift = -grad_x
        grad_s = -(ga * ((va - t) * factor if from_input else va)) - sum_s
    else:
        grad_shift = ga
        grad_s = ga * (va * factor if from_input else va - t) + sum_s
    grad_scale = grad_s * slope
    if split == 1:
        active = checkerboard(v, flip).bool()
        grad_x = torch.where(active, grad_x, g)
        grad_shift, grad_scale = (torch.where(active, d, 0.0) for d in (grad_shift, grad_scale))
    else:
        grad_x = torch.cat([g[:, :first], grad_x, g[:, first + count :]], dim=1)
    found = [grad_x, grad_shift] if log_scale is None else [grad_x, grad_shift, grad_scale]
    return [d.to(value.dtype, copy=True, memory_format=torch.contiguous_format) for d in found]


def _native(
    outputs: tuple[Tensor, ...],
    grad_y: Tensor | None, grad_log_det: Tensor | None, value: Tensor, shift: Tensor, log_scale: Tensor | None,
    *options: Any,
) -> None:  # fmt: skip
    native.C.coupling_backward(
        rows(grad_y), None if grad_log_det is None else grad_log_det.contiguous(), rows(value), rows(shift),
        rows(log_scale), outputs[0], outputs[1], None if log_scale is None else outputs[2], *options,
    )  # fmt: skip


_op = Op(
    "coupling_backward",
    "(Tensor? grad_y, Tensor? grad_log_det, Tensor value, Tensor shift, Tensor? log_scale, bool from_input,"
    " bool inverse, int split, bool flip, int scale_map, float clamp) -> Tensor[]",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=NATIVE_DTYPES,
)


def gradients(grads: list[Tensor | None], args: tuple[Any, ...], outputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Of coupling's x, shift and log_scale, as autograd asks for them; without x, from its output."""
    x, *rest = args
    found: tuple[Tensor, ...] = _op(*grads, outputs[0] if x is None else x, *rest[:2], x is not None, *rest[2:])
    return found


def coupling_backward(
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    value: Tensor,
    shift: Tensor,
    log_scale: Tensor | None = None,
    *,
    from_input: bool = False,
    inverse: bool = False,
    split: str = "channel",
    flip: bool = False,
    scale_map: str = "exp",
    clamp: float = 2.0,
) -> tuple[Tensor, ...]:
    """The gradients of coupling. Autograd through `coupling` calls it; so may a host with its own tape.

    grad_y        the gradient of y, like value; None: zero
    grad_log_det  (B,) float32 (float64 for float64), the gradient of log_det; None: zero
    value         what coupling returned as y, or with `from_input` what it was given as x; float32, bfloat16
                  (float16, float64 through the reference)
    shift, log_scale, inverse, split, flip, scale_map, clamp   as coupling was given them
    Returns (grad_x, grad_shift, grad_log_scale) like value, shift and log_scale; two where log_scale is None.
    Raises ValueError (shapes, options, devices) or TypeError (dtypes) that names the argument.
    """
    if type(clamp) is not float:
        clamp = check.number(clamp, "clamp")
    return tuple(
        _op(
            grad_y, grad_log_det, value, shift, log_scale, from_input, inverse,
            check.choice(split, "split", SPLITS), flip,
            check.choice(scale_map, "scale_map", SCALE_MAPS), clamp,
        )
    )  # fmt: skip

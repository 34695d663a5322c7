"""linear_packed: linear with a weight in panels (pack.py), dense or quantised.

    y = act(x W^T + b) + residual, or gated y = act(g) * u + residual

With dense panels the bits are those of `linear` with the dense weight. With quantised ones x too is rounded to 8 bits
before it is multiplied, a group of G inputs of a row at a time (G = 64 for int8, 32 for int4):

    x' = s round(x / s),    s = max |x| / 127 over the group

so that a product of bytes replaces the float one and one large input costs only its own group precision. A group
that holds NaN or infinity makes its row's outputs NaN. A row's bits depend on that row alone.

Papers: Dettmers et al. 2022 (arXiv 2208.07339: outliers among the inputs), Yao et al. 2022 (2206.01861: groups).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hexad_kernels import arrays, check, native
from hexad_kernels.activation import ACTIVATIONS, GATES, finished
from hexad_kernels.op import CUDA_DTYPES, Op
from hexad_kernels.pack import FORMS, INT8, LANES, PackedWeight, panel_words, unpack

INPUT_GROUPS = {2: 64, 3: 32}


def contract(
    x: Tensor, panels: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None, form: int, rows: int
) -> tuple[Tensor]:
    check.tensor(x, "x")
    if x.ndim < 1:
        raise ValueError("x: got a scalar, wants (..., in features)")
    *leading, inputs = x.shape
    check.tensor(panels, "weight", rank=2, dtypes=(torch.int32,))
    check.like(panels, "weight", x, "x", dtype=False)
    if not 0 <= form <= 3:
        raise ValueError(f"form: got {form}, wants 0 to 3")
    if rows < 0:
        raise ValueError(f"rows: got {rows}, wants at least 0")
    want = (-(-rows // LANES), panel_words(form, inputs))
    if panels.shape != want:
        raise ValueError(
            f"weight: got {panels.shape[0]} panels of {panels.shape[1]} words, wants {want[0]} of {want[1]}: "
            f"{rows} rows of {inputs} inputs = x's last dimension"
        )
    outputs = rows
    if activation in GATES:
        if rows % (2 * LANES):
            raise ValueError(f"weight: got {rows} rows, a packed gate wants a multiple of {2 * LANES}")
        outputs = rows // 2
    if bias is not None:
        check.operand(bias, "bias", (rows,), x, "x", "weight's rows")
    if residual is not None:
        check.operand(residual, "residual", (*leading, outputs), x, "x", "the output's shape")
    return (x.new_empty(*leading, outputs),)


def rounded_inputs(x: Tensor, group: int) -> Tensor:
    """What the kernels make of x before they multiply; its gradient is x's."""
    inputs = x.shape[-1]
    wide = torch.nn.functional.pad(x.detach().float(), (0, -inputs % group)).unflatten(-1, (-1, group))
    if not wide.numel():
        return x
    most = wide.abs().amax(-1, keepdim=True)
    scale = torch.where(most < torch.inf, most * (1 / 127), torch.nan)
    inverse = torch.where(most > 1e-30, torch.full_like(most, 127) / most, 0.0)
    near = (torch.round(wide * inverse).to(x.dtype) * scale.to(x.dtype)).flatten(-2)[..., :inputs]
    return x + (near - x).detach() if x.requires_grad else near


def reference(
    x: Tensor, panels: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None, form: int, rows: int
) -> Tensor:
    stat = check.statistics_dtype(x.dtype)
    y = x.to(stat)
    if form in INPUT_GROUPS:
        y = rounded_inputs(y, INPUT_GROUPS[form])
    weight = unpack(panels.contiguous(), form, rows, x.shape[-1], stat)
    return finished(torch.nn.functional.linear(y, weight), bias, activation, residual, x.dtype)


def _native(
    outputs: tuple[Tensor],
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None,
    activation: int,
    residual: Tensor | None,
    form: int,
    rows: int,
) -> None:
    x = check.matrix(x)
    workspace = None
    if form >= INT8 and x.is_cpu and not native.emulated:
        group = INPUT_GROUPS[form]
        inputs = x.shape[-1]
        count = x.numel() // inputs if inputs else 0
        workspace = x.new_empty((count, -(-inputs // group) * (3 + group // 2)), dtype=torch.int32)
    native.C.linear_packed(
        x,
        panels if panels.is_contiguous() else panels.contiguous(),
        bias if bias is None or bias.is_contiguous() else bias.contiguous(),
        None if residual is None else check.matrix(residual),
        outputs[0],
        workspace,
        activation,
        form,
    )


CUDA_ROWS = 16


def _cuda_refuses(
    x: Tensor, panels: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None, form: int, rows: int
) -> str | None:
    if form < INT8:
        return "dense panels, which are laid out for the CPU (a GPU takes the dense weight)"
    count = x.numel() // x.shape[-1] if x.shape[-1] else 0
    return f"{count} rows (its kernels are for up to {CUDA_ROWS})" if count > CUDA_ROWS else None


_op = Op(
    "linear_packed",
    "(Tensor x, Tensor panels, Tensor? bias, int activation, Tensor? residual, int form, int rows) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=CUDA_DTYPES,
    cuda_refuses=_cuda_refuses,
    gradients=(0, 2, 4),
    batch=lambda *_: {0: 2, 4: 2},
    cast="lower",
    cast_at=(0, 2, 4),
)


def linear_packed(
    x: Tensor,
    panels: Tensor,
    bias: Tensor | None = None,
    *,
    form: str,
    rows: int,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """`linear` on the memory of a PackedWeight: what `linear` calls for one.

    x          (..., K); float32, bfloat16, on CUDA float16 (else through the reference, as float64); CUDA
               takes int8 and int4 and up to 16 rows
    panels     int32, as PackedWeight.panels
    form       "float32", "bfloat16", "int8" or "int4"; need not be x's dtype
    rows       of the dense weight
    bias, activation, residual   as in `linear`; x's dtype
    Returns (..., N) like x. Differentiable in x, bias, residual. ValueError or TypeError names a wrong argument.
    """
    code = check.choice(form, "form", FORMS)
    return _op(x, panels, bias, check.choice(activation, "activation", ACTIVATIONS), residual, code, rows)


def with_packed(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: int, residual: Tensor | None
) -> Tensor:
    if arrays.foreign(x):
        names = ["x", "bias", "residual"]
        return arrays.serve(
            lambda x, b, r: with_packed(x, weight, b, activation, r), [x, bias, residual], names, [False] * 3
        )
    if isinstance(x, Tensor) and x.ndim and x.shape[-1] != weight.shape[1]:  # panels of both may be of the same size
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, wants (any, {x.shape[-1]}) = x's last dimension")
    return _op(x, weight.panels, bias, activation, residual, weight.code, weight.shape[0])

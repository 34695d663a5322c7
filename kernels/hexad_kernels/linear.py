"""linear: a matrix product with its bias, activation or gate, and residual in one pass.

    y = act(x W^T + b) + residual

    relu        max(z, 0)                      silu     z * sigmoid(z)
    gelu        z * Phi(z), Phi the normal distribution function (erf)
    gelu_tanh   z * (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2
    tanh, sigmoid

    silu_gate, gelu_gate   the weight's first N rows make gates g, its last N rows u: y = act(g) * u + residual

Sums are fp32, with one rounding to x's dtype at the very end: chains over 128 inputs, added up in order. (Where the
machine multiplies pairs of bfloat16, a chain takes 256 inputs, two at a step.) A row's bits depend on that row alone.
On a GPU that is so for up to 16 rows; more are torch's matrix product by design.

Papers: Hendrycks & Gimpel 2016 (GELU, arXiv 1606.08415), Elfwing et al. 2017 (SiLU, 1702.03118), Shazeer 2020 (gates,
2002.05202).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from hexad_kernels import check, native
from hexad_kernels.activation import ACTIVATIONS, GATES, finished
from hexad_kernels.linear_packed import with_packed
from hexad_kernels.op import CUDA_DTYPES, Op
from hexad_kernels.pack import PackedWeight


def contract(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None) -> tuple[Tensor]:
    check.tensor(x, "x")
    if x.ndim < 1:
        raise ValueError("x: got a scalar, wants (..., in features)")
    check.tensor(weight, "weight", rank=2)
    check.like(weight, "weight", x, "x")
    *leading, inputs = x.shape
    rows, columns = weight.shape
    if columns != inputs:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, wants (any, {inputs}) = x's last dimension")
    outputs = rows
    if activation in GATES:
        if rows % 2:
            raise ValueError(f"weight: got {rows} rows, a gate wants an even number")
        outputs = rows // 2
    if bias is not None:
        check.operand(bias, "bias", (rows,), x, "x", "weight's rows")
    if residual is not None:
        check.operand(residual, "residual", (*leading, outputs), x, "x", "the output's shape")
    return (x.new_empty(*leading, outputs),)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None) -> Tensor:
    stat = check.statistics_dtype(x.dtype)
    graded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and not graded:
        # The GPU's matrix product of narrow numbers sums in float32 as it is, at many times the speed.
        product = torch.mm(x.flatten(0, -2) if x.ndim > 1 else x[None], weight.t(), out_dtype=stat)
        return finished(product.view(*x.shape[:-1], weight.shape[0]), bias, activation, residual, x.dtype)
    return finished(F.linear(x.to(stat), weight.to(stat)), bias, activation, residual, x.dtype)


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


CUDA_ROWS = 16


def on_cuda_refuses(x: Tensor) -> str | None:
    """A GPU's kernels are for a few rows, which have but the weight to read: more are a matrix product's, torch's."""
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    return f"{rows} rows: more than {CUDA_ROWS} are torch's matrix product's" if rows > CUDA_ROWS else None


def _cuda_refuses(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None
) -> str | None:
    return on_cuda_refuses(x)


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, activation: int, residual: Tensor | None) -> Tensor:
    if not activation and residual is None:
        return F.linear(x, weight, bias)
    # In float32 after the product, in one pass where Triton is there.
    product = F.linear(x, weight)
    if find_spec("triton") is not None and x.dtype in CUDA_DTYPES:
        return import_module("hexad_kernels.triton.linear").finish_product(product, bias, activation, residual)
    return finished(product.to(check.statistics_dtype(x.dtype)), bias, activation, residual, x.dtype)


_op = Op(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, int activation, Tensor? residual) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=CUDA_DTYPES,
    cuda_refuses=_cuda_refuses,
    torch_on_gpu=_by_torch,
    gradients=(0, 1, 2, 4),
    batch=lambda *_: {0: 2, 4: 2},
    cast="lower",
    cast_at=(0, 1, 2, 4),
)


def linear(
    x: Tensor,
    weight: Tensor | PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(x W^T + bias) + residual.

    x          (..., K); float32, bfloat16, on a GPU float16 (else through the reference, as float64)
    weight     (N, K) like x, (2 N, K) for a gate: gates' rows, then ups'; or a PackedWeight (pack, quantize), whose
               form need not be x's dtype: packed in x's dtype it gives the dense weight's bits. A packed gate wants N
               to be a multiple of 16.
    bias       (N,), (2 N,) for a gate
    activation None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "silu_gate" or "gelu_gate"
    residual   (..., N)
    Returns (..., N) like x. Leading dimensions may be absent, empty or strided.
    Differentiable in x, weight (not a packed one), bias, residual. ValueError or TypeError names a wrong argument.
    """
    code = check.choice(activation, "activation", ACTIVATIONS)
    if type(weight) is PackedWeight:
        return with_packed(x, weight, bias, code, residual)
    return _op(x, weight, bias, code, residual)

"""merge_attention: the attention over two disjoint sets of keys, from the attention over each.

    lse = ln(exp(lse_a) + exp(lse_b))
    out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b

Associative and commutative up to rounding, so any split of the keys can be merged in any tree. A side that saw no key
(lse -inf) is not read; two such sides give out 0, lse -inf.

Paper: Milakov & Gimelshein 2018 (arXiv 1805.02867), equation of the online normaliser.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.op import NATIVE_DTYPES, Op


def contract(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    check.tensor(out_a, "out_a")
    if out_a.ndim < 1:
        raise ValueError("out_a: got 0 dimensions, wants (..., D)")
    check.tensor(out_b, "out_b")
    check.like(out_b, "out_b", out_a, "out_a")
    if out_b.shape != out_a.shape:
        check.shape(out_b, "out_b", tuple(out_a.shape), "out_a's shape")
    statistics = (check.statistics_dtype(out_a.dtype),)
    for value, name in ((lse_a, "lse_a"), (lse_b, "lse_b")):
        check.tensor(value, name, dtypes=statistics)
        check.like(value, name, out_a, "out_a", dtype=False)
        if value.shape != out_a.shape[:-1]:
            check.shape(value, name, tuple(out_a.shape[:-1]), "out_a's shape without its last dimension")
    return check.empty_like(out_a), check.empty_like(lse_a)


def reference(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    m = torch.maximum(lse_a, lse_b)
    m = torch.where(m == -math.inf, 0.0, m)
    a, b = torch.exp(lse_a - m), torch.exp(lse_b - m)
    total = a + b
    nothing = total == 0
    divisor = torch.where(nothing, 1.0, total)
    wa, wb = (a / divisor).unsqueeze(-1), (b / divisor).unsqueeze(-1)
    out = torch.where(wa == 0, 0.0, out_a.to(wa.dtype) * wa) + torch.where(wb == 0, 0.0, out_b.to(wb.dtype) * wb)
    return out.to(out_a.dtype), torch.where(nothing, -math.inf, m + torch.log(divisor))


def _native(outputs: tuple[Tensor, Tensor], out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    out, lse = outputs
    shape = (lse.numel(), out.shape[-1])
    native.C.merge_attention(
        check.unit_stride(out_a.reshape(shape)), lse_a.reshape(-1).contiguous(),
        check.unit_stride(out_b.reshape(shape)), lse_b.reshape(-1).contiguous(), out.view(shape), lse.view(-1),
    )  # fmt: skip


_op = Op(
    "merge_attention",
    "(Tensor out_a, Tensor lse_a, Tensor out_b, Tensor lse_b) -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    batch=lambda *_: {0: 2, 1: 1, 2: 2, 3: 1},
    cuda=NATIVE_DTYPES,
)


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two sets of keys.

    out_a, out_b  (..., D), one dtype: float32, bfloat16 (float16, float64 through the reference)
    lse_a, lse_b  (...) float32 (float64 for float64), natural logarithm, as attention and decode return them
    Returns out (..., D) like out_a, lse (...). Raises ValueError (shapes, devices) or TypeError (dtypes).
    """
    return _op(out_a, lse_a, out_b, lse_b)

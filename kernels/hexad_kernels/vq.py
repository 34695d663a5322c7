"""vq: the nearest entry of a codebook, by squared distance.

    index = argmin over k of sum over d of (x_d - codebook_kd)^2        the lowest k on ties
    quantized = codebook[index]

Differences are squared as they stand, not expanded into |x|^2 - 2 x.c + |c|^2: near ties do not cancel. (The CPU
kernel uses x.c - |c|^2 / 2 to rule entries out, with a bound on its rounding error, and compares the others as they
stand.)

Paper: van den Oord et al. 2017 (VQ-VAE, arXiv 1711.00937).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.op import Op

# As in csrc/op/vq.h: rows that need no workspace, and codebook entries that a thread packs at once.
FEW, PART = 24, 1024


def contract(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    check.tensor(x, "x")
    if x.ndim < 1:
        raise ValueError("x: got a scalar, wants (..., features)")
    check.tensor(codebook, "codebook", rank=2)
    check.like(codebook, "codebook", x, "x")
    if codebook.shape[1] != x.shape[-1] or codebook.shape[0] < 1:
        raise ValueError(
            f"codebook: got shape {tuple(codebook.shape)}, wants (at least 1, {x.shape[-1]}) = x's last dimension"
        )
    index = torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
    return check.empty_like(x), index


def reference(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    stat = check.statistics_dtype(x.dtype)
    rows, entries = x.reshape(x.shape[:-1].numel(), x.shape[-1]).to(stat), codebook.to(stat)
    found: list[Tensor] = []
    step = max(1, 2**24 // max(1, entries.numel()))
    for first in range(0, len(rows), step):
        distance = (rows[first : first + step, None] - entries).square().sum(-1)
        wrong = distance.isnan().nonzero()
        if len(wrong):
            row, entry = (wrong[0] + wrong.new_tensor([first, 0])).tolist()
            raise ValueError(f"x, codebook: the distance from row {row} to entry {entry} is NaN, wants numbers")
        found.append(distance.argmin(-1))
    index = torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=x.device)
    return codebook[index].view(x.shape), index.view(x.shape[:-1])


def _native(outputs: tuple[Tensor, Tensor], x: Tensor, codebook: Tensor) -> None:
    size = x.shape[-1]
    part = min(PART, max(64, 131072 // max(1, size) // 64 * 64))
    need = torch.get_num_threads() * (part + 6) * size if outputs[1].numel() > FEW else 0
    workspace = x.new_empty(need, dtype=torch.float32)
    native.C.vq(check.matrix(x), check.matrix(codebook), *outputs, workspace)


_op = Op(
    "vq",
    "(Tensor x, Tensor codebook) -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    batch=lambda *_: {0: 2},
)


def vq(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise vectors: the nearest codebook entry of each, and its index.

    x         (..., D); float32, bfloat16 (float16, float64 through the reference)
    codebook  (K, D), K >= 1
    Returns quantized (..., D), exact copies of entries, and index (...) int64. Not differentiable: use the
    straight-through estimator, x + (quantized - x).detach().
    ValueError or TypeError names a wrong argument, or the first row and entry whose distance is NaN; a GPU's kernel
    cannot wait to raise and gives such a row index -1 and NaN.
    """
    return _op(x, codebook)

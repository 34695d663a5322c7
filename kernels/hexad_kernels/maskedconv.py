"""maskedconv: a convolution that sees only what comes before, in raster order: PixelCNN's layer.

    y[o, h, w] = b[o] + sum over c and taps (i, j) in the mask of W[o, c, i, j] * x[c, h + i - kh//2, w + j - kw//2]

x reads as zero outside the image. The mask is a set of taps, with (ci, cj) the kernel's middle:

    "A"            i < ci, or i = ci and j < cj       strictly before the centre
    "B"            "A" and the centre
    "above"        i < ci                             the vertical stack: rows above
    "above_or_at"  i <= ci                            and the whole centre row

Weights outside the mask never count, whatever they hold. One row or one pixel can be asked for alone, with the
bits that it has in the full output: sampling then costs one pixel a step.

Papers: van den Oord et al. 2016 (PixelRNN, arXiv 1601.06759; gated PixelCNN, 1606.05328).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hexad_kernels import check, native
from hexad_kernels.op import Op

BLOCK = 64  # the pixels that a thread gathers at once (csrc/op/maskedconv.h)
MASKS = {"A": 0, "B": 1, "above": 2, "above_or_at": 3}


def taps_before(mask: int, kh: int, kw: int) -> int:
    """Each mask is the first few taps in raster order: how many."""
    return (kh // 2 * kw + kw // 2, kh // 2 * kw + kw // 2 + 1, kh // 2 * kw, (kh // 2 + 1) * kw)[mask]


def contract(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: int, row: int | None, col: int | None
) -> tuple[Tensor]:
    check.tensor(x, "x", rank=4)
    check.tensor(weight, "weight", rank=4)
    check.like(weight, "weight", x, "x")
    batch, channels, height, width = x.shape
    outputs, inputs, kh, kw = weight.shape
    if inputs != channels or kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, wants (any, {channels}, odd, odd) = (out, in channels, kernel)"
        )
    if bias is not None:
        check.operand(bias, "bias", (outputs,), x, "x", "weight's output channels")
    if row is None:
        if col is not None:
            raise ValueError(f"row: got None with col {col}, wants the pixel's row")
        return (x.new_empty(batch, outputs, height, width),)
    if not 0 <= row < height:
        raise ValueError(f"row: got {row}, wants 0 <= row < {height}")
    if col is None:
        return (x.new_empty(batch, outputs, width),)
    if not 0 <= col < width:
        raise ValueError(f"col: got {col}, wants 0 <= col < {width}")
    return (x.new_empty(batch, outputs),)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, mask: int, row: int | None, col: int | None) -> Tensor:
    stat = check.statistics_dtype(x.dtype)
    kh, kw = weight.shape[2:]
    # Kernel rows below the centre hold no tap of any mask.
    rows = kh // 2 + 1
    taps = torch.arange(rows * kw, device=x.device).view(rows, kw) < taps_before(mask, kh, kw)
    kept = torch.where(taps, weight[:, :, :rows].to(stat), 0)
    padded = F.pad(x.to(stat), (kw // 2, kw // 2, kh // 2, 0))
    if row is not None:
        padded = padded[:, :, row : row + rows]
    if col is not None:
        padded = padded[..., col : col + kw]
    y = F.conv2d(padded, kept, None if bias is None else bias.to(stat)).to(x.dtype)
    if row is not None:
        y = y[:, :, 0]
    return (y if col is None else y[..., 0]).contiguous()


def _native(
    outputs: tuple[Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: int,
    row: int | None,
    col: int | None,
) -> None:
    cout, inputs, kh, kw = weight.shape
    taps = taps_before(mask, kh, kw)
    workspace = (cout + 15) // 16 * 16 * inputs * taps + torch.get_num_threads() * (BLOCK * inputs * taps + 16)
    native.C.maskedconv(
        x,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        outputs[0],
        x.new_empty(workspace, dtype=torch.float32),
        taps,
        -1 if row is None else row,
        -1 if col is None else col,
    )


_op = Op(
    "maskedconv",
    "(Tensor x, Tensor weight, Tensor? bias, int mask, SymInt? row, SymInt? col) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    gradients=(0, 1, 2),
    batch=lambda *_: {0: 4},
    cast="lower",
    cast_at=(0, 1, 2),
)


def maskedconv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: str = "B",
    row: int | None = None,
    col: int | None = None,
) -> Tensor:
    """Causal 2d convolution with 'same' zero padding; with `row`, or `row` and `col`, that part of it alone.

    x       (B, Cin, H, W), any strides; float32, bfloat16 (float16, float64 through the reference)
    weight  (Cout, Cin, kh, kw), kh and kw odd
    bias    (Cout,)
    mask    "A", "B", "above" or "above_or_at"
    Returns (B, Cout, H, W); with row (B, Cout, W), only rows up to `row` of x count; with row and col (B, Cout).
    Differentiable in x, weight, bias. ValueError or TypeError names a wrong argument.
    """
    return _op(x, weight, bias, check.choice(mask, "mask", MASKS), row, col)

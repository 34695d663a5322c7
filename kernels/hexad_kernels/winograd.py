"""winograd: a 3 x 3 convolution in a quarter of the multiplications.

    y[o, h, w] = b[o] + sum over c, i, j of W[o, c, i, j] * x[c, h + i - 1, w + j - 1]

computed as F(4 x 4, 3 x 3): for each tile of 4 x 4 outputs, which sees 6 x 6 inputs d,

    Y = A^T [ sum over c of (G W G^T) * (B^T d B) ] A

at the points 0, 1, -1, 2, -2 and infinity; * is element by element, x reads as zero outside the image. G W G^T is
made once (`pack_winograd`). A tile takes 36 multiplications a channel where the direct form takes 144, at some thirty
times its rounding error: 4e-5 for outputs of size 1. An infinity or a NaN in x makes all outputs of the tiles that see
it NaN or infinite.

Paper: Lavin & Gray 2015 (arXiv 1509.09308).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hexad_kernels import check, native
from hexad_kernels.op import Op

# As in csrc/op/winograd.h.
POINTS, LANES, APART, LEAST, HELD = 36, 16, 16, 48, 43690
SIDE = 4  # of a tile of outputs

# Row p: 24 times what the three weights along a side are at point p.
WEIGHTS = ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))


def pack_winograd(weight: Tensor) -> Tensor:
    """A convolution's weight (Cout, Cin, 3, 3) as `winograd` takes it: transformed, in panels of 16 outputs.

    Returns (36, ceil(Cout / 16), Cin, 16) of weight's dtype, four times its size; outputs beyond Cout are 0.
    The transform is computed in float64. Differentiable. ValueError or TypeError names what is wrong.
    """
    check.tensor(weight, "weight", rank=4)
    outputs = weight.shape[0]
    if weight.shape[2:] != (3, 3):
        raise ValueError(
            f"weight: got shape {tuple(weight.shape)}, wants (any, any, 3, 3) = (out, in channels, kernel)"
        )
    matrix = torch.tensor(WEIGHTS, dtype=torch.float64, device=weight.device) / 24
    points = (matrix @ weight.double() @ matrix.T).permute(2, 3, 1, 0).flatten(0, 1)
    panels = F.pad(points, (0, -outputs % LANES)).unflatten(-1, (-1, LANES))
    return panels.transpose(1, 2).to(weight.dtype).contiguous()


def contract(x: Tensor, taps: Tensor, bias: Tensor | None, outputs: int) -> tuple[Tensor]:
    check.tensor(x, "x", rank=4)
    check.tensor(taps, "taps", rank=4)
    check.like(taps, "taps", x, "x")
    batch, inputs, height, width = x.shape
    if outputs < 0:
        raise ValueError(f"outputs: got {outputs}, wants at least 0")
    check.shape(taps, "taps", (POINTS, -(-outputs // LANES), inputs, LANES), "pack_winograd of a weight for x")
    if bias is not None:
        check.operand(bias, "bias", (outputs,), x, "x", "the output channels")
    return (x.new_empty(batch, outputs, height, width),)


def _to_points(d: Tensor) -> Tensor:
    """Six numbers along the last dimension at the six points."""
    d0, d1, d2, d3, d4, d5 = d.unbind(-1)
    even, odd, far, near = d4 - 4 * d2, d3 - 4 * d1, d4 - d2, d3 - d1
    points = (4 * d0 + (d4 - 5 * d2), even + odd, even - odd, far + 2 * near, far - 2 * near, 4 * d1 + (d5 - 5 * d3))
    return torch.stack(points, -1)


def _from_points(m: Tensor) -> Tensor:
    """Four numbers from their products at the six points."""
    m0, m1, m2, m3, m4, m5 = m.unbind(-1)
    plus, minus, plus2, minus2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return torch.stack((m0 + plus + plus2, minus + 2 * minus2, plus + 4 * plus2, minus + 8 * minus2 + m5), -1)


def reference(x: Tensor, taps: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    stat = check.statistics_dtype(x.dtype)
    batch, inputs, height, width = x.shape
    down, across = max(1, -(-height // SIDE)), max(1, -(-width // SIDE))
    padded = F.pad(x.to(stat), (1, SIDE * across - width + 1, 1, SIDE * down - height + 1))
    tiles = padded.unfold(2, 6, SIDE).unfold(3, 6, SIDE)  # (B, C, down, across, 6, 6)
    points = _to_points(_to_points(tiles).transpose(-1, -2)).transpose(-1, -2)
    rows = points.permute(4, 5, 0, 2, 3, 1).reshape(POINTS, batch * down * across, inputs)
    weight = taps.to(stat).permute(0, 2, 1, 3).reshape(POINTS, inputs, LANES * taps.shape[1])[..., :outputs]
    sums = torch.bmm(rows, weight).view(6, 6, batch, down, across, outputs).permute(2, 5, 3, 4, 0, 1)
    y = _from_points(_from_points(sums).transpose(-1, -2)).transpose(-1, -2)  # (B, O, down, across, 4, 4)
    y = y.transpose(3, 4).reshape(batch, outputs, SIDE * down, SIDE * across)[:, :, :height, :width]
    return (y if bias is None else y + bias.to(stat)[:, None, None]).to(x.dtype).contiguous()


def workspace_size(inputs: int, outputs: int, tiles: int) -> int:
    """Floats: transformed inputs and products of as many tiles as are worked on at once."""
    both = sum(-(-n // LANES) * LANES for n in (inputs, outputs))
    held = -(-min(tiles, max(LEAST, HELD // (both + 1))) // 6) * 6
    return POINTS * (held * both + 2 * APART)


def _native(outputs_: tuple[Tensor], x: Tensor, taps: Tensor, bias: Tensor | None, outputs: int) -> None:
    batch, inputs, height, width = x.shape
    tiles = batch * -(-height // SIDE) * -(-width // SIDE)
    native.C.winograd(
        x,
        taps.contiguous(),
        None if bias is None else bias.contiguous(),
        outputs_[0],
        x.new_empty(workspace_size(inputs, outputs, tiles)),
    )


_op = Op(
    "winograd",
    "(Tensor x, Tensor taps, Tensor? bias, SymInt outputs) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    dtypes=(torch.float32,),
    gradients=(0, 1, 2),
    batch=lambda *_: {0: 4},
    torch_on_gpu=reference,
)


def winograd(x: Tensor, taps: Tensor, bias: Tensor | None = None, *, outputs: int | None = None) -> Tensor:
    """3 x 3 convolution, stride 1, 'same' zero padding, with weights from `pack_winograd`.

    x        (B, Cin, H, W), any strides; float32 (float64, bfloat16, float16 through the reference)
    taps     (36, ceil(Cout / 16), Cin, 16), x's dtype
    bias     (Cout,)
    outputs  Cout; None: bias's size, or without a bias 16 for each panel
    Returns (B, Cout, H, W), contiguous. Differentiable in x, taps, bias. On the CPU; a GPU computes the same in plain
    torch. ValueError or TypeError names a wrong argument.
    """
    if outputs is None:
        known = bias if bias is not None else taps
        outputs = 0
        if isinstance(known, Tensor) and known.ndim:
            outputs = known.shape[0] if known is bias else LANES * known.shape[1] if known.ndim > 1 else 0
    return _op(x, taps, bias, check.integer(outputs, "outputs"))

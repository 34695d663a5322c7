"""rope: rotary position embedding.

    (y1, y2) = (x1 c - x2 s, x2 c + x1 s)   for each pair of a row at position p, c = cos[p], s = sin[p]

Pair i of a row of n is (i, i + n/2), or the neighbours (2i, 2i + 1) with interleaved=True. With angles p * theta_i the
product of two rotated rows depends on their distance only.

Paper: Su et al. 2021 (RoFormer, arXiv 2104.09864).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hexad_kernels import check, memory, native
from hexad_kernels.op import CUDA_DTYPES, Op


def check_tables(x: Tensor, name: str, cos: Tensor, sin: Tensor) -> None:
    if x.shape[3] % 2 or x.shape[3] < 2:
        raise ValueError(f"{name}: got head dimension {x.shape[3]}, wants an even one to rotate")
    for value, side in ((cos, "cos"), (sin, "sin")):
        check.tensor(value, side, rank=2)
        check.like(value, side, x, name, dtype=False)
        if value.dtype not in (torch.float32, x.dtype):
            raise TypeError(f"{side}: got {check.names([value.dtype])}, wants float32 or {name}'s dtype")
        if value.shape[1] != x.shape[3] // 2:
            check.shape(value, side, (None, x.shape[3] // 2), f"(positions, half of {name}'s head dimension)")
    if x.shape[2] > cos.shape[0]:
        raise ValueError(f"cos: has {cos.shape[0]} positions, wants at least {name}'s {x.shape[2]} rows")
    if sin.shape != cos.shape or sin.dtype != cos.dtype:
        raise ValueError(f"sin: got {tuple(sin.shape)} {sin.dtype}, wants cos's {tuple(cos.shape)} {cos.dtype}")


def check_positions(starts: list[int], name: str, rows: int, cos: Tensor) -> None:
    """Reads values: for references only; the compiled kernels check the same in their door."""
    room = cos.shape[0]
    for b, start in enumerate(starts):
        if rows and (start < 0 or start + rows > room):
            raise ValueError(f"{name}: row {b} starts at {start}, wants 0 to {room - rows} (cos has {room} positions)")


def contract(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool) -> tuple[Tensor]:
    check.tensor(x, "x", rank=4)
    check_tables(x, "x", cos, sin)
    if positions is not None:
        check.tensor(positions, "positions", rank=1, dtypes=(torch.int32,))
        check.like(positions, "positions", x, "x", dtype=False)
        check.shape(positions, "positions", (x.shape[0],), "(B,)")
    return (memory.empty_like(x),)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, starts: list[int], interleaved: bool) -> Tensor:
    """x (B, H, S, D) with sequence b's rows at starts[b], starts[b] + 1, ..."""
    dtype = check.statistics_dtype(x.dtype)
    rows = torch.arange(x.shape[2], device=x.device)
    at = rows + torch.tensor(starts, dtype=torch.int64, device=x.device)[:, None]
    c, s = (t.to(dtype)[at].unsqueeze(1) for t in (cos, sin))
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    a, b = a.to(dtype), b.to(dtype)
    pair = (a * c - b * s, b * c + a * s)
    y = torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)
    return y.to(x.dtype)


def reference(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool) -> Tensor:
    starts = [0] * x.shape[0] if positions is None else positions.tolist()
    check_positions(starts, "positions", x.shape[2], cos)
    return rotate(x, cos, sin, starts, interleaved)


def table(t: Tensor) -> Tensor:
    """A rotation table as the compiled kernels read it: float32, on the CPU also bfloat16."""
    kept = t.dtype == torch.float32 or (t.dtype == torch.bfloat16 and t.is_cpu and not native.emulated)
    return check.unit_stride(t if kept else t.float())


def _native(
    outputs: tuple[Tensor], x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, interleaved: bool
) -> None:
    native.C.rope(check.unit_stride(x), table(cos), table(sin), positions, outputs[0], interleaved)


_op = Op(
    "rope",
    "(Tensor x, Tensor cos, Tensor sin, Tensor? positions, bool interleaved) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=CUDA_DTYPES,
    gradients=(0,),
    batch=lambda *_: {0: 4, 3: 1},
)


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, positions: Tensor | None = None, interleaved: bool = False) -> Tensor:
    """Rotate the rows of queries or keys by their positions.

    x          (B, H, S, D), D even; float32, bfloat16, on CUDA float16 (else through the reference, as float64)
    cos, sin   (max_pos, D/2) float32, or x's dtype
    positions  (B,) int32: the position of each sequence's first row; default 0
    Returns (B, H, S, D) like x. Differentiable in x. Raises ValueError or TypeError that names the argument; a position
    outside the tables is found before anything is written (on the CPU), and named with its row.
    """
    return _op(x, cos, sin, positions, interleaved)

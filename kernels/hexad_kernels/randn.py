"""randn: standard normals that depend on a seed and a place only, never on a stream that others also draw from.

    w      = Philox4x32-10(counter = (block, offset), key = seeds[b])      four 32-bit words
    z0, z1 = r(w0) cos(2 pi u(w1)), r(w0) sin(2 pi u(w1))
    z2, z3 = r(w2) cos(2 pi u(w3)), r(w2) sin(2 pi u(w3))
    u(w)   = (w + 1/2) 2^-32        r(w) = sqrt(-2 ln u(w))

Element e of a row (C order) is z[e % 4] of block e // 4. The seed's 64 bits are the key, low word first; the
counter's words are block low, block high, offset low, offset high. u is never 0 or 1, so every value is
finite, at most 6.77 in size. Computed in float64 and rounded to float32 once.

Papers: Salmon et al. 2011 (Philox, "Parallel random numbers: as easy as 1, 2, 3"), Box & Muller 1958.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hexad_kernels import arrays, check, native
from hexad_kernels.op import NATIVE_DTYPES, Op

WORD = 0xFFFFFFFF


def _multiply(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """High and low words of a * m for 32-bit a and m, within int64."""
    high = (a * (m >> 16) + (a * (m & 0xFFFF) >> 16)) >> 16
    return high, a * m & WORD


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four counter words and two key words, each 0 to 2^32 - 1 in int64, to four words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9 & WORD, k1 + 0xBB67AE85 & WORD
    return c0, c1, c2, c3


def words(value: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high word of an int64's bits."""
    return value & WORD, value >> 32 & WORD


def as_seeds(seeds: Tensor | Sequence[int]) -> Tensor:
    """Integers of any size as int64 bits; tensors as they are."""
    if isinstance(seeds, Tensor):
        return seeds
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Sequence):
        raise TypeError(f"seeds: got {type(seeds).__name__}, wants an int64 tensor (B,) or a sequence of integers")
    try:
        return torch.tensor([((s & (1 << 64) - 1) ^ 1 << 63) - (1 << 63) for s in seeds], dtype=torch.int64)
    except TypeError:
        raise TypeError(f"seeds: got {seeds!r}, wants integers") from None


def contract(seeds: Tensor, shape: Sequence[int], offset: int) -> tuple[Tensor]:
    check.tensor(seeds, "seeds", rank=1, dtypes=(torch.int64,))
    for size in shape:
        if size < 0:
            raise ValueError(f"shape: got {tuple(shape)}, wants sizes of at least 0")
    if offset < 0:
        raise ValueError(f"offset: got {offset}, wants at least 0")
    return (seeds.new_empty(seeds.shape[0], *shape, dtype=torch.float32),)


def reference(seeds: Tensor, shape: Sequence[int], offset: int) -> Tensor:
    n = math.prod(shape)
    block = torch.arange((n + 3) // 4, device=seeds.device)
    low, high = words(torch.full_like(block, offset))
    w = philox((*words(block), low, high), [k[:, None] for k in words(seeds)])
    z = []
    for i in (0, 2):
        r = torch.sqrt(-2 * torch.log((w[i].double() + 0.5) * 2.0**-32))
        angle = (w[i + 1].double() + 0.5) * (2 * math.pi * 2.0**-32)
        z += [r * torch.cos(angle), r * torch.sin(angle)]
    return torch.stack(z, -1).flatten(1)[:, :n].float().reshape(len(seeds), *shape)


def _native(outputs: tuple[Tensor], seeds: Tensor, shape: Sequence[int], offset: int) -> None:
    native.C.randn(seeds.contiguous(), outputs[0], offset)


_op = Op(
    "randn",
    "(Tensor seeds, SymInt[] shape, SymInt offset) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
    batch=lambda *_: {0: 1},
    cuda=NATIVE_DTYPES,
)


def randn(seeds: Tensor | Sequence[int], shape: Sequence[int], *, offset: int = 0) -> Tensor:
    """Standard normals, a row per seed.

    seeds   (B,) int64, or a sequence of integers
    shape   of one row
    offset  0 to 2^63 - 1: independent draws under the same seed (a sampler's step, say)
    Returns (B, *shape) float32. A row depends on its own seed, `offset` and each element's place in the row
    only; a longer row starts with the shorter one's values.
    """
    if type(seeds) is Tensor and type(shape) is tuple:
        return _op(seeds, shape, offset)
    if arrays.foreign(seeds):
        return arrays.serve(lambda s: randn(s, shape, offset=offset), [seeds], ["seeds"], [False])
    try:
        size = tuple(shape)
    except TypeError:
        raise TypeError(f"shape: got {check.described(shape)}, wants a sequence of integers") from None
    return _op(as_seeds(seeds), size, offset)

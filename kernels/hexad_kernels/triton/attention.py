"""attention in Triton: a program per tile of query rows carries the softmax over tiles of keys.

Key tiles are counted from key 0 and their size follows from chip, dtype, head dimension and the kind of mask; a tile's
arithmetic is the same whether or not it has to look for hidden keys, and no multiplication is fused with an addition
that is not written as fma. So a row's bits depend on what it sees and on nothing else: not on the rows beside it in
its tile, nor on the query heads of its group that share the tile when rows are few.

Tiles that no row sees are left out; tiles that every row sees whole make no comparison. The longest programs of a
causal call come first. Scores are in units of ln 2, so that exponentials are exp2.

A hidden key must not matter, yet in a matrix product 0 * NaN does. So the fast loops run first; a program that ends
up with a NaN or an infinity runs again with care.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton.common import INTERPRETED, launch, refuse_dtypes, tanh, target, widen

CAREFUL_COLUMNS = tl.constexpr(16)
LOG2E = tl.constexpr(math.log2(math.e))
LEAST = tl.constexpr(torch.finfo(torch.float32).min)
LN2_HIGH = tl.constexpr(0.693145751953125)  # 16 bits, so that what it multiplies loses little
LN2_LOW = tl.constexpr(math.log(2) - 0.693145751953125)
RAW = tl.constexpr(0)  # the scores of a tile are plain products, to be scaled inside exp2's argument
SCALED = tl.constexpr(1)

# The fusing of products and sums is written out: what the compiler fuses depends on the code around it.
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def load_tile(at, there, within, EDGE: tl.constexpr, PADDED: tl.constexpr):
    """A tile of keys or values: 0 past the last key (edge tiles) and past the head dimension (padded widths)."""
    if EDGE:
        if PADDED:
            return tl.load(at, mask=there & within, other=0.0)
        return tl.load(at, mask=there, other=0.0)
    if PADDED:
        return tl.load(at, mask=within, other=0.0)
    return tl.load(at)


@triton.jit
def adjusted(
    s, positions, columns, slopes, softcap, factor, KIND: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr
):  # fmt: skip
    """Scores in units of ln 2 from products; the factor is scale log2(e), with a soft cap scale / cap. Positions and
    columns are counted from the tile's first key."""
    if KIND == SCALED:
        s = s * factor
        if SOFTCAP:
            s = tanh(s) * softcap
        if ALIBI:
            # Floats: a conversion from an integer costs as much as an exponential.
            ahead = columns.to(tl.float32)[None, :] - positions.to(tl.float32)[:, None]
            s = tl.fma(-slopes[:, None], tl.abs(ahead), s)
    return s


@triton.jit
def online_softmax(s, m, total, factor, KIND: tl.constexpr):
    """One more tile of scores: its exponentials, the factor for what was summed before, the new (m, total)."""
    top = tl.max(s, 1)
    if KIND == RAW:
        top = top * factor
    m_new = tl.maximum(m, top)
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    if KIND == RAW:
        p = tl.exp2(tl.fma(s, factor, -base[:, None]))
    else:
        p = tl.exp2(s - base[:, None])
    before = tl.exp2(m - base)
    return p, before, m_new, tl.fma(total, before, tl.sum(p, 1))


@triton.jit
def add_special(acc, p, v_ptr, v_row, keys, BN: tl.constexpr):
    """acc plus what NaN and infinite values add, one key at a time; p is negative where a row doesn't see a key."""
    columns = tl.arange(0, BN)
    for j in tl.range(0, tl.minimum(BN, keys), num_stages=1):
        value = tl.load(v_ptr + tl.cast(j, tl.int64) * v_row).to(tl.float32)
        weight = tl.sum(tl.where((columns == j)[None, :], p, 0.0), 1)
        adds = ((weight < 0.0) == 0)[:, None] & ((tl.abs(value) < float("inf")) == 0)[None, :]
        acc += tl.where(adds, weight[:, None] * value[None, :], 0.0)
    return acc


@triton.jit
def attend(
    q, k_ptr, v_ptr, mask_rows, acc, m, total, positions, slopes, begin, end, keys, dim, value_dim,
    k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
    MASK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr,
    KIND: tl.constexpr, EDGE: tl.constexpr, CAREFUL: tl.constexpr, PAD_K: tl.constexpr, PAD_V: tl.constexpr,
    UP: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """(weighted values, maximum, sum of exponentials) with the tiles of keys from begin to end added."""
    columns = tl.arange(0, BN)
    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    k_at = columns[None, :] * k_row + d[:, None] * k_col
    v_at = columns[:, None] * v_row + dv[None, :] * v_col
    # The careful loop is seldom run; pipelined, it would cost registers that the others need.
    for n in tl.range(begin, end, BN, num_stages=1 if CAREFUL else None):
        there = n + columns < keys
        step = tl.cast(n, tl.int64)
        k = load_tile(k_ptr + step * k_row + k_at, there[None, :], d[:, None] < dim, EDGE, PAD_K)
        s = tl.dot(q, widen(k, UP), input_precision="ieee")
        s = adjusted(s, positions - n, columns, slopes, softcap, factor, KIND, SOFTCAP, ALIBI)
        if EDGE:
            last = keys - 1 - n
            if RIGHT:
                visible = columns[None, :] <= (tl.minimum(positions + right, keys - 1) - n)[:, None]
            else:
                visible = (columns <= last)[None, :]
            if LEFT:
                visible = visible & (columns[None, :] >= (positions - left - n)[:, None])
            if MASK != 0:
                at = mask_rows + (step + columns)[None, :] * mask_col
                if MASK == 1 or MASK == 3:
                    visible = visible & (tl.load(at, mask=there[None, :], other=0) != 0)
                else:
                    bias = tl.load(at, mask=there[None, :], other=0.0).to(tl.float32)
                    visible = visible & (bias != float("-inf"))
                    s = tl.fma(bias, LOG2E, s)
                    s = tl.where(s < LEAST, LEAST, s)  # a bias of the least float hides no key
            s = tl.where(visible, s, float("-inf"))
        p, before, m, total = online_softmax(s, m, total, factor, KIND)
        v = widen(load_tile(v_ptr + step * v_row + v_at, there[:, None], dv[None, :] < value_dim, EDGE, PAD_V), UP)
        acc *= before[:, None]
        if CAREFUL:
            finite = v - v == 0.0
            acc = tl.dot(p.to(v.dtype), tl.where(finite, v, 0.0).to(v.dtype), acc, input_precision="ieee")
            if tl.max(tl.where(finite, 0, 1)) > 0:
                # Clamped columns repeat the last value dimension, which the store leaves out.
                row = v_ptr + step * v_row + tl.minimum(dv, value_dim - 1) * v_col
                acc = add_special(acc, tl.where(visible, p, -1.0), row, v_row, keys - n, BN)
        else:
            acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    return acc, m, total


@triton.jit
def denominator(total):
    return tl.where(total == 0.0, 1.0, total)


@triton.jit
def log_sum(m, total):
    """A row's log-sum-exp, natural, from a maximum in units of ln 2; a row that saw nothing has total 0."""
    lse = tl.fma(m, LN2_HIGH, tl.fma(m, LN2_LOW, tl.log(denominator(total))))
    return tl.where(total == 0.0, float("-inf"), lse)


@triton.jit
def any_special(acc):
    return tl.max(tl.where(tl.abs(acc) < float("inf"), 0, 1)) > 0


@triton.jit
def key_range(first, last, keys, left, right, LEFT: tl.constexpr, RIGHT: tl.constexpr, BN: tl.constexpr):
    """For rows at positions first .. last: (begin, full_begin, full_end, end); every row sees the tiles from
    full_begin to full_end whole, and none sees a key before begin or from end on."""
    begin, full_begin = 0, 0
    end, full_end = keys, keys // BN * BN
    if RIGHT:
        end = tl.maximum(tl.minimum(last + right + 1, keys), 0)
        full_end = tl.minimum(tl.maximum(first + right + 1, 0) // BN * BN, full_end)
    if LEFT:
        begin = tl.maximum(first - left, 0) // BN * BN
        full_begin = tl.minimum(tl.cdiv(tl.maximum(last - left, 0), BN) * BN, tl.cdiv(end, BN) * BN)
    return begin, full_begin, tl.maximum(full_begin, full_end), end


@triton.jit
def find_sequence(starts_ptr, stride, sequences, tile, ROWS: tl.constexpr):
    """Of packed sequences, that of a tile. Sequence n is given the tiles from starts[n] // ROWS + n on: enough for it
    wherever it starts, and found without summing the tiles before."""
    low = tile * 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        at_or_before = tl.load(starts_ptr + middle * stride) // ROWS + middle <= tile
        low = tl.where(at_or_before, middle, low)
        high = tl.where(at_or_before, high, middle)
    return low


@triton.jit(do_not_specialize=["tiles", "sequences", "heads", "group", "row_count", "keys", "left", "right"])
def attention_kernel(
    q_ptr, k_ptr, v_ptr, mask_ptr, slopes_ptr, sinks_ptr, starts_q_ptr, starts_k_ptr, out_ptr, lse_ptr,
    tiles, sequences, heads, group, row_count, keys, dim, value_dim,
    q_batch, q_head, q_row, q_col, k_batch, k_head, k_row, k_col, v_batch, v_head, v_row, v_col,
    mask_batch, mask_head, mask_row, mask_col, out_batch, out_head, out_row, lse_batch, lse_head,
    slopes_stride, sinks_stride, starts_q_stride, starts_k_stride, left, right, softcap, factor,
    ALIGN: tl.constexpr, VARLEN: tl.constexpr, PACK: tl.constexpr, UPPER_LEFT: tl.constexpr, MASK: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    KIND: tl.constexpr, PAD_K: tl.constexpr, PAD_V: tl.constexpr, UP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = BM // PACK
    # Sizes come divided by ALIGN: so the compiler sees whole 16-byte words where rows are 72 elements long.
    dim *= ALIGN
    value_dim *= ALIGN
    q_row *= ALIGN
    k_row *= ALIGN
    v_row *= ALIGN
    q_batch, q_head = tl.cast(q_batch, tl.int64) * ALIGN, tl.cast(q_head, tl.int64) * ALIGN
    k_batch, k_head = tl.cast(k_batch, tl.int64) * ALIGN, tl.cast(k_head, tl.int64) * ALIGN
    v_batch, v_head = tl.cast(v_batch, tl.int64) * ALIGN, tl.cast(v_head, tl.int64) * ALIGN
    pid = tl.program_id(0)
    if VARLEN:
        b = tl.cast(0, tl.int64)
        block = pid // tiles
        n = find_sequence(starts_q_ptr, starts_q_stride, sequences, pid % tiles, ROWS)
        start_q = tl.load(starts_q_ptr + n * starts_q_stride)
        start_k = tl.load(starts_k_ptr + n * starts_k_stride)
        row_count = tl.load(starts_q_ptr + (n + 1) * starts_q_stride) - start_q
        keys = tl.load(starts_k_ptr + (n + 1) * starts_k_stride) - start_k
        first = (pid % tiles - start_q // ROWS - n) * ROWS
        q_ptr += tl.cast(start_q, tl.int64) * q_row
        k_ptr += tl.cast(start_k, tl.int64) * k_row
        v_ptr += tl.cast(start_k, tl.int64) * v_row
        out_ptr += tl.cast(start_q, tl.int64) * out_row * ALIGN
        lse_ptr += start_q
        if first >= row_count:
            return
    else:
        blocks = heads // PACK
        b = (pid // tiles // blocks).to(tl.int64)
        block = pid // tiles % blocks
        # A causal call's last rows see most: its longest programs start first.
        first = (tiles - 1 - pid % tiles) * ROWS
    i = tl.arange(0, BM)
    d = tl.arange(0, D)
    dv = tl.arange(0, DV)
    # Rows past the last repeat it: they read what is there, and are not stored.
    here = (i < ROWS * PACK) & (first + i // PACK < row_count)
    row = tl.minimum(first + tl.minimum(i // PACK, ROWS - 1), row_count - 1)
    wide = row.to(tl.int64)
    head = (block * PACK + i % PACK).to(tl.int64)
    kv_head = tl.cast(block * PACK // group, tl.int64)
    k_ptr += b * k_batch + kv_head * k_head
    v_ptr += b * v_batch + kv_head * v_head
    q_at = q_ptr + b * q_batch + (head * q_head + wide * q_row)[:, None] + d[None, :] * q_col
    q = widen(load_tile(q_at, True, d[None, :] < dim, False, PAD_K), UP)
    offset = 0
    if not UPPER_LEFT:
        offset = keys - row_count
    positions = row + offset
    if MASK >= 3:
        mask_rows = mask_ptr + b * mask_batch + tl.cast(block * PACK, tl.int64) * mask_head
    elif MASK != 0:
        mask_rows = mask_ptr + b * mask_batch + (head * mask_head + wide * mask_row)[:, None]
    else:
        mask_rows = mask_ptr
    slopes = 0.0
    if ALIBI:
        slopes = tl.load(slopes_ptr + head * slopes_stride) * LOG2E
    m = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    if SINKS:
        m = tl.load(sinks_ptr + head * sinks_stride) * LOG2E
        total = tl.where(m == float("-inf"), 0.0, 1.0)
    m_start, total_start = m, total
    last = tl.minimum(first + ROWS, row_count) - 1 + offset
    begin, full_begin, full_end, end = key_range(first + offset, last, keys, left, right, LEFT, RIGHT, BN)
    acc = tl.zeros((BM, DV), tl.float32)
    if MASK != 0:
        full_begin = begin
        full_end = begin
    else:
        if LEFT:
            acc, m, total = attend(
                q, k_ptr, v_ptr, mask_rows, acc, m, total, positions, slopes, begin, full_begin, keys, dim, value_dim,
                k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
                MASK, LEFT, RIGHT, SOFTCAP, ALIBI, KIND, True, False, PAD_K, PAD_V, UP, BN, D, DV,
            )  # fmt: skip
        acc, m, total = attend(
            q, k_ptr, v_ptr, mask_rows, acc, m, total, positions, slopes, full_begin, full_end, keys, dim, value_dim,
            k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
            MASK, LEFT, RIGHT, SOFTCAP, ALIBI, KIND, False, False, PAD_K, PAD_V, UP, BN, D, DV,
        )  # fmt: skip
    acc, m, total = attend(
        q, k_ptr, v_ptr, mask_rows, acc, m, total, positions, slopes, full_end, end, keys, dim, value_dim,
        k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
        MASK, LEFT, RIGHT, SOFTCAP, ALIBI, KIND, True, False, PAD_K, PAD_V, UP, BN, D, DV,
    )  # fmt: skip
    out_at = out_ptr + b * out_batch * ALIGN + ((head * out_head + wide * out_row) * ALIGN)[:, None]
    if any_special(acc):
        # A few columns at a time: the care costs registers.
        part = tl.arange(0, CAREFUL_COLUMNS)
        for c in range(0, value_dim, CAREFUL_COLUMNS):
            some = tl.zeros((BM, CAREFUL_COLUMNS), tl.float32)
            some, m, total = attend(
                q, k_ptr, v_ptr + c * v_col, mask_rows, some, m_start, total_start, positions, slopes, begin, end,
                keys, dim, value_dim - c, k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
                MASK, LEFT, RIGHT, SOFTCAP, ALIBI, KIND, True, True, PAD_K, True, UP, BN, D, CAREFUL_COLUMNS,
            )  # fmt: skip
            tl.store(
                out_at + c + part[None, :], some / denominator(total)[:, None],
                mask=here[:, None] & (c + part[None, :] < value_dim),
            )  # fmt: skip
    else:
        tl.store(
            out_at + dv[None, :], acc / denominator(total)[:, None], mask=here[:, None] & (dv[None, :] < value_dim)
        )
    tl.store(lse_ptr + b * lse_batch + head * lse_head + row, log_sum(m, total), mask=here)


def padded(dim: int) -> int:
    """The width of a matrix instruction's operand that holds `dim`."""
    return max(16, triton.next_power_of_2(dim))


# Rows and keys of a tile, warps, stages, by the head dimension up to which they hold: the widest that spill nothing.
TILES = {
    "sm_80": {64: (128, 64, 8, 3), 128: (128, 32, 8, 3), 256: (64, 32, 8, 2)},
    "sm_90": {64: (128, 128, 8, 2), 128: (128, 64, 8, 3), 256: (64, 64, 8, 2)},
    "sm_100": {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 64, 8, 2)},
    "gfx942": {64: (128, 64, 4, 1), 128: (128, 64, 4, 1), 256: (64, 32, 4, 1)},
}
# The same where scores are more than a product: a mask's tile, a soft cap and slopes want registers.
ADJUSTED_TILES = {
    "sm_80": {64: (128, 64, 8, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 2)},
    "sm_90": {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 64, 8, 2)},
    "sm_100": {64: (128, 64, 8, 2), 128: (128, 64, 8, 2), 256: (64, 64, 8, 2)},
    "gfx942": {64: (128, 64, 4, 1), 128: (128, 32, 4, 1), 256: (64, 32, 4, 1)},
}
FLOAT32_TILE = (16, 16, 8, 1)
# The interpreter sums a product's terms one after another: in float32 longer tiles would show.
INTERPRETED_TILES = {4: (64, 32, 1, 1), 2: (64, 64, 1, 1)}


def tiles(chip: str, dtype: torch.dtype, dim: int, adjusted: bool) -> tuple[int, int, int, int]:
    if INTERPRETED:
        return INTERPRETED_TILES[dtype.itemsize]
    if dtype == torch.float32:
        return FLOAT32_TILE
    sizes = (ADJUSTED_TILES if adjusted else TILES)[chip]
    return next(shape for width, shape in sizes.items() if dim <= width)


def refuses(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: object) -> str | None:
    """Shared by the ops of the family: (B, H, S, D), or packed (S, H, D)."""
    if max(q.shape[-1], v.shape[-1]) > 256:
        return f"head dimension {max(q.shape[-1], v.shape[-1])}, its tiles hold 256"
    if max(max(t.stride(-1), t.stride(2 if t.ndim == 4 else 0)) for t in (q, k, v)) >= 2**24:
        return "rows 2^24 elements apart, its tiles count offsets in 32 bits"
    return refuse_dtypes(q, None if mask is None or mask.dtype == torch.bool else mask)


def window(rows: int, keys: int, causal: int, left: int, right: int) -> tuple[int, int]:
    """(left, right) as kernels take them, -1 for a side that hides nothing."""
    right = 0 if causal else right
    left, right = (w if w < rows + keys else -1 for w in (left, right))
    return left, right


def score_factors(dim: int, softcap: float | None, scale: float | None) -> tuple[float, float]:
    """(softcap, factor of a product) that give scores in units of ln 2."""
    scale = dim**-0.5 if scale is None else scale
    if softcap is None:
        return 1.0, scale * math.log2(math.e)
    return softcap * math.log2(math.e), scale / softcap


def score_kind(mask: Tensor | None, softcap: float | None, alibi: Tensor | None, factor: float) -> int:
    """RAW where a factor is all that a score needs; it must keep -inf what it is."""
    plain = softcap is None and alibi is None and (mask is None or mask.dtype == torch.bool)
    return 0 if plain and factor > 1e-30 else 1


def mask_kind(mask: Tensor | None, strides: tuple[int, ...], pack: int) -> int:
    """1 a bool mask, 2 one that is added; 3 and 4 the same where all rows of a tile share its row."""
    if mask is None:
        return 0
    shared = strides[2] == 0 and (pack == 1 or strides[1] == 0)
    return (1 if mask.dtype == torch.bool else 2) + (2 if shared else 0)


def heads_of_a_tile(rows: int, group: int, tile: int) -> int:
    """Query heads of one key head that share a tile: the group's, where the rows of one would leave it half empty."""
    return group if 2 * rows <= tile and group <= tile else 1


def aligned(*sizes: int) -> tuple[int, tuple[int, ...]]:
    """(ALIGN, the sizes divided by it): 8, where it divides all but columns 1 apart."""
    align = 8 if all(n % 8 == 0 for n in sizes) else 1
    return align, tuple(n // align for n in sizes)


def stride_of(t: Tensor | None) -> int:
    return 0 if t is None else t.stride(0)


def run(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    out, lse = outputs
    batch, heads, rows, dim = q.shape
    kv_heads, keys, value_dim = v.shape[1:]
    group = heads // kv_heads if batch else 1
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        strides = mask.expand(batch, heads, rows, keys).stride()
    left, right = window(rows, keys, causal, left, right)
    cap, factor = score_factors(dim, softcap, scale)
    kind = score_kind(mask, softcap, alibi_slopes, factor)
    widths = padded(dim), padded(value_dim)
    size, step, warps, stages = tiles(target(q.device), q.dtype, max(widths), kind != 0 or mask is not None)
    pack = heads_of_a_tile(rows, group, size)
    masked = mask_kind(mask, strides, pack)
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    count = triton.cdiv(rows, size // pack)
    q_col, k_col, v_col = (t.stride(3) for t in (q, k, v))
    align, (d, dv, *rest) = aligned(
        dim, value_dim, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3]
    )  # fmt: skip
    launch(
        attention_kernel, (count * (heads // pack) * batch,), q.device,
        q, k, v, mask, alibi_slopes, sinks, None, None, out, lse, count, 1, heads, group, rows, keys, d, dv,
        *rest[:3], q_col, *rest[3:6], k_col, *rest[6:9], v_col, *strides, *rest[9:], *lse.stride()[:2],
        stride_of(alibi_slopes), stride_of(sinks), 0, 0, left, right, cap, factor,
        align, False, pack, causal == 2, masked, left >= 0, right >= 0, softcap is not None, alibi_slopes is not None,
        sinks is not None, kind, widths[0] != dim, widths[1] != value_dim, INTERPRETED, size, step, *widths,
        num_warps=warps, num_stages=stages, **OPTIONS,
    )  # fmt: skip


# Registers and shared memory of the largest kernel a case launches, with a tenth to spare.
BUDGET = {
    "llama_prefill bfloat16": {
        "sm_80": (255, 65536),
        "sm_90": (240, 131072),
        "sm_100": (240, 98848),
        "gfx942": (320, 32768),
        "matrix": True,
    },
    "masked bfloat16": {
        "sm_80": (255, 40960),
        "sm_90": (255, 73728),
        "sm_100": (248, 57376),
        "gfx942": (264, 16384),
        "matrix": True,
    },
}

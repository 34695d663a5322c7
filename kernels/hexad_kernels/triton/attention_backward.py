"""attention_backward in Triton: two passes and no atomic, so each sum has one order.

    rows_kernel   a row's delta = <grad_out, out> - grad_lse into a workspace, its lse beside it
    keys_kernel   a program per tile of keys adds up grad_k and grad_v over the heads of the group, then over rows
    queries_kernel   a program per tile of rows adds up grad_q over keys

Both passes make the scores again from q, k and lse. Keys stand in rows of the second kernel's products, so that p and
ds are left operands as they come. As in attention, tiles that nothing sees are left out, those seen whole make no
comparison. A program that ends up with a NaN or an infinity says so, and one of a second launch of its kernel, in
which the others end at once, makes its tile again with care for hidden pairs: the care costs registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.triton import attention
from hexad_kernels.triton.attention import (
    CAREFUL_COLUMNS,
    OPTIONS,
    any_special,
    key_range,
    load_tile,
    padded,
)
from hexad_kernels.triton.common import INTERPRETED, launch, refuse_dtypes, tanh, target, widen


@triton.jit
def rows_kernel(
    grad_out_ptr, out_ptr, lse_ptr, grad_lse_ptr, work_ptr, count, heads, row_count, value_dim,
    g_batch, g_head, g_row, g_col, o_batch, o_head, o_row, o_col, lse_batch, lse_head, lse_row,
    grad_lse_batch, grad_lse_head, grad_lse_row, GRAD_LSE: tl.constexpr, ROWS: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(row_count, ROWS)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = sequence // heads, sequence % heads
    row = (tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    dv = tl.arange(0, DV)
    here = row < row_count
    inside = here[:, None] & (dv < value_dim)[None, :]
    g_at = grad_out_ptr + b * g_batch + h * g_head + row[:, None] * g_row + dv[None, :] * g_col
    o_at = out_ptr + b * o_batch + h * o_head + row[:, None] * o_row + dv[None, :] * o_col
    g = tl.load(g_at, mask=inside, other=0.0).to(tl.float32)
    delta = tl.sum(g * tl.load(o_at, mask=inside, other=0.0).to(tl.float32), 1)
    if GRAD_LSE:
        at = grad_lse_ptr + b * grad_lse_batch + h * grad_lse_head + row * grad_lse_row
        delta -= tl.load(at, mask=here, other=0.0)
    lse = tl.load(lse_ptr + b * lse_batch + h * lse_head + row * lse_row, mask=here, other=0.0)
    work = work_ptr + sequence * row_count + row
    tl.store(work, lse, mask=here)
    tl.store(work + count, delta, mask=here)


@triton.jit
def weights(
    s, dp, lse, delta, bias, visible, softcap, factor, MASK: tl.constexpr, SOFTCAP: tl.constexpr, EDGE: tl.constexpr
):  # fmt: skip
    """(p, ds) of a tile; ds still wants the scale. lse and delta are laid out to broadcast. Natural units: lse is
    given, and its rounding to others would show in p."""
    base = tl.where(lse == float("-inf"), float("inf"), lse)
    slope = 1.0
    if SOFTCAP:
        t = tanh(s * factor)
        slope = tl.fma(-t, t, 1.0)
        s = t * softcap
        if MASK == 2:
            s += bias
        s = s - base
    elif MASK == 2:
        s = tl.fma(s, factor, bias) - base
    else:
        s = tl.fma(s, factor, -base)
    p = tl.exp(s)
    ds = p * (dp - delta)
    if SOFTCAP:
        ds = ds * slope
    if EDGE:
        p = tl.where(visible, p, 0.0)
        ds = tl.where(visible, ds, 0.0)
    return p, ds


@triton.jit
def add_products(acc, w, visible, tile_ptr, row, col, there, within, UP: tl.constexpr, N: tl.constexpr):
    """acc + w @ a tile, in which hidden pairs add nothing even where the tile is NaN or infinite."""
    columns = tl.arange(0, N)
    part = tl.arange(0, CAREFUL_COLUMNS)
    # Clamped columns repeat the last one, which the store leaves out.
    at = tile_ptr + tl.minimum(part, within - 1) * col
    x = widen(tl.load(at[None, :] + columns[:, None] * row, mask=(columns < there)[:, None], other=0.0), UP)
    finite = x - x == 0.0
    acc = tl.dot(w.to(x.dtype), tl.where(finite, x, 0.0).to(x.dtype), acc, input_precision="ieee")
    if tl.max(tl.where(finite, 0, 1)) > 0:
        for j in tl.range(0, tl.minimum(N, there), num_stages=1):
            value = tl.load(at + j * row).to(tl.float32)
            this = (columns == j)[None, :]
            weight = tl.sum(tl.where(this, w, 0.0), 1)
            seen = tl.max(tl.where(this & visible, 1, 0), 1) > 0
            adds = seen[:, None] & ((tl.abs(value) < float("inf")) == 0)[None, :]
            acc += tl.where(adds, weight[:, None] * value[None, :], 0.0)
    return acc


@triton.jit
def over_rows(
    dk, dv, k, v, q_ptr, g_ptr, work_ptr, mask_at, at_key, part, begin, end, group, row_count, count, dim, value_dim,
    q_head, q_row, q_col, g_head, g_row, g_col, mask_head, mask_row, left, right, softcap, factor,
    MASK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr, PAD_K: tl.constexpr, PAD_V: tl.constexpr, UP: tl.constexpr,
    BM: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """(grad_k, grad_v) of a tile of keys, rows begin to end of each head of the group added, in one loop: one in
    another costs registers. at_key: the row at a key's position."""
    columns = tl.arange(0, BM)
    d = tl.arange(0, D)
    e = tl.arange(0, DV)
    q_at = columns[:, None] * q_row + d[None, :] * q_col
    g_at = columns[:, None] * g_row + e[None, :] * g_col
    tiles = tl.maximum(tl.cdiv(end - begin, BM), 0)
    for t in tl.range(0, group * tiles, num_stages=1 if CAREFUL else None):
        h = tl.cast(t // tiles, tl.int64)
        r = begin + t % tiles * BM
        there = r + columns < row_count
        step = tl.cast(r, tl.int64)
        q_tile = q_ptr + h * q_head + step * q_row
        g_tile = g_ptr + h * g_head + step * g_row
        work = work_ptr + h * row_count + r
        q = widen(load_tile(q_tile + q_at, there[:, None], d[None, :] < dim, EDGE, PAD_K), UP)
        lse = load_tile(work + columns, there, True, EDGE, False)
        delta = load_tile(work + count + columns, there, True, EDGE, False)
        s = tl.dot(k, tl.trans(q), input_precision="ieee")
        g = widen(load_tile(g_tile + g_at, there[:, None], e[None, :] < value_dim, EDGE, PAD_V), UP)
        dp = tl.dot(v, tl.trans(g), input_precision="ieee")
        visible = there[None, :]
        bias = 0.0
        if EDGE:
            visible = (there & (lse != float("-inf")))[None, :]
            if RIGHT:
                visible = visible & (columns[None, :] >= (at_key - right - r)[:, None])
            if LEFT:
                visible = visible & (columns[None, :] <= (at_key + left - r)[:, None])
            if MASK != 0:
                pairs = mask_at + h * mask_head + (step + columns)[None, :] * mask_row
                if MASK == 1:
                    visible = visible & (tl.load(pairs, mask=there[None, :], other=0) != 0)
                else:
                    bias = tl.load(pairs, mask=there[None, :], other=0.0).to(tl.float32)
                    visible = visible & (bias != float("-inf"))
        p, ds = weights(
            s, dp, lse[None, :], delta[None, :], bias, visible, softcap, factor, MASK, SOFTCAP, EDGE
        )  # fmt: skip
        if CAREFUL:
            row = tl.minimum(part, value_dim - 1)
            dv = add_products(
                dv, p, visible, g_tile + row * g_col, g_row, g_col, row_count - r, value_dim - row, UP, BM
            )  # fmt: skip
            row = tl.minimum(part, dim - 1)
            dk = add_products(
                dk, ds, visible, q_tile + row * q_col, q_row, q_col, row_count - r, dim - row, UP, BM
            )  # fmt: skip
        else:
            dv = tl.dot(p.to(g.dtype), g, dv, input_precision="ieee")
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=["heads", "group", "row_count", "keys", "count", "left", "right"])
def keys_kernel(
    q_ptr, k_ptr, v_ptr, grad_out_ptr, work_ptr, mask_ptr, flag_ptr, grad_k_ptr, grad_v_ptr,
    heads, group, row_count, keys, count, dim, value_dim,
    q_batch, q_head, q_row, q_col, k_batch, k_head, k_row, k_col, v_batch, v_head, v_row, v_col,
    g_batch, g_head, g_row, g_col, mask_batch, mask_head, mask_row, mask_col, left, right, softcap, factor, scale,
    CAREFUL: tl.constexpr, UPPER_LEFT: tl.constexpr, MASK: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    PAD_K: tl.constexpr, PAD_V: tl.constexpr, UP: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    if CAREFUL:
        spoilt = tl.load(flag_ptr + tl.program_id(0))
        if spoilt == 0:
            return
    tiles = tl.cdiv(keys, BN)
    kv_heads = heads // group
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    # A causal call's first keys are seen most.
    first = tl.program_id(0) % tiles * BN
    b, kv_head = sequence // kv_heads, sequence % kv_heads
    d = tl.arange(0, D)
    e = tl.arange(0, DV)
    # Keys past the last repeat it: they read what is there, and are not stored.
    here = first + tl.arange(0, BN) < keys
    key = tl.minimum(first + tl.arange(0, BN), keys - 1)
    wide = key.to(tl.int64)
    k_at = k_ptr + b * k_batch + kv_head * k_head + wide[:, None] * k_row + d[None, :] * k_col
    v_at = v_ptr + b * v_batch + kv_head * v_head + wide[:, None] * v_row + e[None, :] * v_col
    k = widen(load_tile(k_at, True, d[None, :] < dim, False, PAD_K), UP)
    v = widen(load_tile(v_at, True, e[None, :] < value_dim, False, PAD_V), UP)
    offset = 0
    if not UPPER_LEFT:
        offset = keys - row_count
    last = tl.minimum(first + BN, keys) - 1 - offset
    # From a key, the window lies the other way round.
    begin, full_begin, full_end, end = key_range(first - offset, last, row_count, right, left, RIGHT, LEFT, BM)
    h = kv_head * group
    q_ptr += b * q_batch + h * q_head
    grad_out_ptr += b * g_batch + h * g_head
    work_ptr += (b * heads + h) * row_count
    if MASK != 0:
        mask_ptr += b * mask_batch + h * mask_head + wide[:, None] * mask_col
    grad_k_at = grad_k_ptr + (sequence * keys + wide)[:, None] * dim
    grad_v_at = grad_v_ptr + (sequence * keys + wide)[:, None] * value_dim
    if CAREFUL:
        part = tl.arange(0, CAREFUL_COLUMNS)
        for c in range(0, tl.maximum(dim, value_dim), CAREFUL_COLUMNS):
            some_k = tl.zeros((BN, CAREFUL_COLUMNS), tl.float32)
            some_v = tl.zeros((BN, CAREFUL_COLUMNS), tl.float32)
            some_k, some_v = over_rows(
                some_k, some_v, k, v, q_ptr, grad_out_ptr, work_ptr, mask_ptr, key - offset, c, begin, end,
                group, row_count, count, dim, value_dim,
                q_head, q_row, q_col, g_head, g_row, g_col, mask_head, mask_row, left, right, softcap, factor,
                MASK, LEFT, RIGHT, SOFTCAP, True, True, PAD_K, PAD_V, UP, BM, D, DV,
            )  # fmt: skip
            at = c + part[None, :]
            tl.store(grad_k_at + at, some_k * scale, mask=here[:, None] & (at < dim))
            tl.store(grad_v_at + at, some_v, mask=here[:, None] & (at < value_dim))
    else:
        dk = tl.zeros((BN, D), tl.float32)
        dv = tl.zeros((BN, DV), tl.float32)
        if MASK != 0:
            full_end = begin
        else:
            if RIGHT:
                dk, dv = over_rows(
                    dk, dv, k, v, q_ptr, grad_out_ptr, work_ptr, mask_ptr, key - offset, 0, begin, full_begin,
                    group, row_count, count, dim, value_dim,
                    q_head, q_row, q_col, g_head, g_row, g_col, mask_head, mask_row, left, right, softcap, factor,
                    MASK, LEFT, RIGHT, SOFTCAP, True, False, PAD_K, PAD_V, UP, BM, D, DV,
                )  # fmt: skip
            dk, dv = over_rows(
                dk, dv, k, v, q_ptr, grad_out_ptr, work_ptr, mask_ptr, key - offset, 0, full_begin, full_end,
                group, row_count, count, dim, value_dim,
                q_head, q_row, q_col, g_head, g_row, g_col, mask_head, mask_row, left, right, softcap, factor,
                MASK, LEFT, RIGHT, SOFTCAP, False, False, PAD_K, PAD_V, UP, BM, D, DV,
            )  # fmt: skip
        dk, dv = over_rows(
            dk, dv, k, v, q_ptr, grad_out_ptr, work_ptr, mask_ptr, key - offset, 0, full_end, end,
            group, row_count, count, dim, value_dim,
            q_head, q_row, q_col, g_head, g_row, g_col, mask_head, mask_row, left, right, softcap, factor,
            MASK, LEFT, RIGHT, SOFTCAP, True, False, PAD_K, PAD_V, UP, BM, D, DV,
        )  # fmt: skip
        tl.store(flag_ptr + tl.program_id(0), (any_special(dk) | any_special(dv)).to(tl.int32))
        tl.store(grad_k_at + d[None, :], dk * scale, mask=here[:, None] & (d < dim)[None, :])
        tl.store(grad_v_at + e[None, :], dv, mask=here[:, None] & (e < value_dim)[None, :])


@triton.jit
def over_keys(
    dq, q, g, lse, delta, k_ptr, v_ptr, mask_at, positions, part, begin, end, keys, dim, value_dim,
    k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
    MASK: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    EDGE: tl.constexpr, CAREFUL: tl.constexpr, PAD_K: tl.constexpr, PAD_V: tl.constexpr, UP: tl.constexpr,
    BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """grad_q of a tile of rows with the keys from begin to end added."""
    columns = tl.arange(0, BN)
    d = tl.arange(0, D)
    e = tl.arange(0, DV)
    k_at = columns[:, None] * k_row + d[None, :] * k_col
    v_at = columns[:, None] * v_row + e[None, :] * v_col
    for n in tl.range(begin, end, BN, num_stages=1 if CAREFUL else None):
        there = n + columns < keys
        step = tl.cast(n, tl.int64)
        k = widen(load_tile(k_ptr + step * k_row + k_at, there[:, None], d[None, :] < dim, EDGE, PAD_K), UP)
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        v = widen(load_tile(v_ptr + step * v_row + v_at, there[:, None], e[None, :] < value_dim, EDGE, PAD_V), UP)
        dp = tl.dot(g, tl.trans(v), input_precision="ieee")
        visible = there[None, :]
        bias = 0.0
        if EDGE:
            visible = there[None, :] & (lse != float("-inf"))[:, None]
            if RIGHT:
                visible = visible & (columns[None, :] <= (positions + right - n)[:, None])
            if LEFT:
                visible = visible & (columns[None, :] >= (positions - left - n)[:, None])
            if MASK != 0:
                pairs = mask_at + (step + columns)[None, :] * mask_col
                if MASK == 1:
                    visible = visible & (tl.load(pairs, mask=there[None, :], other=0) != 0)
                else:
                    bias = tl.load(pairs, mask=there[None, :], other=0.0).to(tl.float32)
                    visible = visible & (bias != float("-inf"))
        _, ds = weights(
            s, dp, lse[:, None], delta[:, None], bias, visible, softcap, factor, MASK, SOFTCAP, EDGE
        )  # fmt: skip
        if CAREFUL:
            tile = k_ptr + step * k_row + part * k_col
            dq = add_products(dq, ds, visible, tile, k_row, k_col, keys - n, dim - part, UP, BN)
        else:
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=["heads", "group", "row_count", "keys", "count", "left", "right"])
def queries_kernel(
    q_ptr, k_ptr, v_ptr, grad_out_ptr, work_ptr, mask_ptr, flag_ptr, grad_q_ptr,
    heads, group, row_count, keys, count, dim, value_dim,
    q_batch, q_head, q_row, q_col, k_batch, k_head, k_row, k_col, v_batch, v_head, v_row, v_col,
    g_batch, g_head, g_row, g_col, mask_batch, mask_head, mask_row, mask_col, left, right, softcap, factor, scale,
    CAREFUL: tl.constexpr, UPPER_LEFT: tl.constexpr, MASK: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    PAD_K: tl.constexpr, PAD_V: tl.constexpr, UP: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    if CAREFUL:
        spoilt = tl.load(flag_ptr + tl.program_id(0))
        if spoilt == 0:
            return
    tiles = tl.cdiv(row_count, BM)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tiles - 1 - tl.program_id(0) % tiles) * BM
    b, h = sequence // heads, sequence % heads
    d = tl.arange(0, D)
    e = tl.arange(0, DV)
    here = first + tl.arange(0, BM) < row_count
    row = tl.minimum(first + tl.arange(0, BM), row_count - 1)
    wide = row.to(tl.int64)
    q_at = q_ptr + b * q_batch + h * q_head + wide[:, None] * q_row + d[None, :] * q_col
    g_at = grad_out_ptr + b * g_batch + h * g_head + wide[:, None] * g_row + e[None, :] * g_col
    q = widen(load_tile(q_at, True, d[None, :] < dim, False, PAD_K), UP)
    g = widen(load_tile(g_at, True, e[None, :] < value_dim, False, PAD_V), UP)
    lse = tl.load(work_ptr + sequence * row_count + row)
    delta = tl.load(work_ptr + count + sequence * row_count + row)
    k_ptr += b * k_batch + h // group * k_head
    v_ptr += b * v_batch + h // group * v_head
    offset = 0
    if not UPPER_LEFT:
        offset = keys - row_count
    last = tl.minimum(first + BM, row_count) - 1 + offset
    begin, full_begin, full_end, end = key_range(first + offset, last, keys, left, right, LEFT, RIGHT, BN)
    if MASK != 0:
        mask_ptr += b * mask_batch + h * mask_head + wide[:, None] * mask_row
    grad_q_at = grad_q_ptr + (sequence * row_count + wide)[:, None] * dim
    if CAREFUL:
        part = tl.arange(0, CAREFUL_COLUMNS)
        for c in range(0, dim, CAREFUL_COLUMNS):
            some = tl.zeros((BM, CAREFUL_COLUMNS), tl.float32)
            some = over_keys(
                some, q, g, lse, delta, k_ptr, v_ptr, mask_ptr, row + offset, c, begin, end,
                keys, dim, value_dim,
                k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
                MASK, LEFT, RIGHT, SOFTCAP, True, True, PAD_K, PAD_V, UP, BN, D, DV,
            )  # fmt: skip
            at = c + part[None, :]
            tl.store(grad_q_at + at, some * scale, mask=here[:, None] & (at < dim))
    else:
        dq = tl.zeros((BM, D), tl.float32)
        if MASK != 0:
            full_end = begin
        else:
            if LEFT:
                dq = over_keys(
                    dq, q, g, lse, delta, k_ptr, v_ptr, mask_ptr, row + offset, 0, begin, full_begin,
                    keys, dim, value_dim,
                    k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
                    MASK, LEFT, RIGHT, SOFTCAP, True, False, PAD_K, PAD_V, UP, BN, D, DV,
                )  # fmt: skip
            dq = over_keys(
                dq, q, g, lse, delta, k_ptr, v_ptr, mask_ptr, row + offset, 0, full_begin, full_end,
                keys, dim, value_dim,
                k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
                MASK, LEFT, RIGHT, SOFTCAP, False, False, PAD_K, PAD_V, UP, BN, D, DV,
            )  # fmt: skip
        dq = over_keys(
            dq, q, g, lse, delta, k_ptr, v_ptr, mask_ptr, row + offset, 0, full_end, end,
            keys, dim, value_dim,
            k_row, k_col, v_row, v_col, mask_col, left, right, softcap, factor,
            MASK, LEFT, RIGHT, SOFTCAP, True, False, PAD_K, PAD_V, UP, BN, D, DV,
        )  # fmt: skip
        tl.store(flag_ptr + tl.program_id(0), any_special(dq).to(tl.int32))
        tl.store(grad_q_at + d[None, :], dq * scale, mask=here[:, None] & (d < dim)[None, :])


ROWS_TILE = 16  # rows of rows_kernel
# ((keys, rows, warps, stages) of keys_kernel, (rows, keys, warps, stages) of queries_kernel), by head dimension.
TILES = {
    "sm_80": {
        64: ((64, 32, 8, 2), (64, 64, 8, 2)),
        128: ((64, 32, 8, 2), (64, 32, 8, 2)),
        256: ((32, 16, 8, 1), (32, 16, 8, 1)),
    },
    "sm_90": {
        64: ((128, 32, 8, 2), (128, 64, 8, 2)),
        128: ((64, 32, 8, 2), (128, 64, 8, 2)),
        256: ((32, 16, 8, 1), (32, 16, 8, 1)),
    },
    "sm_100": {
        64: ((64, 32, 8, 2), (128, 64, 8, 2)),
        128: ((64, 32, 8, 2), (128, 64, 8, 2)),
        256: ((32, 16, 8, 1), (64, 32, 8, 2)),
    },
    "gfx942": {
        64: ((64, 32, 4, 1), (64, 32, 4, 1)),
        128: ((64, 32, 4, 2), (64, 32, 4, 1)),
        256: ((32, 16, 4, 1), (32, 16, 4, 1)),
    },
}
# Masks and soft caps want registers: fewer rows at a time in keys_kernel.
ADJUSTED_ROWS = 16
FLOAT32_TILES = ((16, 16, 8, 1), (16, 16, 8, 1))
# The interpreter sums a product's terms one after another: in float32 longer tiles would show.
INTERPRETED_TILES = {4: ((32, 32, 1, 1), (32, 32, 1, 1)), 2: ((64, 64, 1, 1), (64, 64, 1, 1))}


Shape = tuple[int, int, int, int]


def tiles(chip: str, dtype: torch.dtype, dim: int, adjusted: bool) -> tuple[Shape, Shape]:
    if INTERPRETED:
        return INTERPRETED_TILES[dtype.itemsize]
    if dtype == torch.float32:
        return FLOAT32_TILES
    of_keys, of_rows = next(shapes for width, shapes in TILES[chip].items() if dim <= width)
    if adjusted and dim > 64:
        of_keys = (of_keys[0], ADJUSTED_ROWS, *of_keys[2:])
    return of_keys, of_rows


def refuses(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Tensor | None, *rest: object,
) -> str | None:  # fmt: skip
    return attention.refuses(q, k, v, mask) or attention.refuses(q, q, grad_out, None) or refuse_dtypes(lse)


def run(
    outputs: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Tensor | None, causal: int, left: int, right: int, softcap: float | None, scale: float | None,
) -> None:  # fmt: skip
    grad_q, grad_k, grad_v = outputs
    batch, heads, rows, dim = q.shape
    kv_heads, keys, value_dim = v.shape[1:]
    group = heads // kv_heads
    strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        strides = mask.expand(batch, heads, rows, keys).stride()
    left, right = attention.window(rows, keys, causal, left, right)
    scale = dim**-0.5 if scale is None else scale
    cap, factor = (1.0, scale) if softcap is None else (softcap, scale / softcap)
    masked = 0 if mask is None else 1 if mask.dtype == torch.bool else 2
    if mask is not None and masked == 1:
        mask = mask.view(torch.uint8)
    widths = padded(dim), padded(value_dim)
    count = batch * heads * rows
    work = torch.empty(2 * count, dtype=torch.float32, device=q.device)
    launch(
        rows_kernel, (triton.cdiv(rows, ROWS_TILE) * heads * batch,), q.device,
        grad_out, out, lse, grad_lse, work, count, heads, rows, value_dim, *grad_out.stride(), *out.stride(),
        *lse.stride(), *((0, 0, 0) if grad_lse is None else grad_lse.stride()), grad_lse is not None,
        ROWS_TILE, widths[1],
    )  # fmt: skip
    sizes = heads, group, rows, keys, count, dim, value_dim
    layout = (
        *q.stride(), *k.stride(), *v.stride(), *grad_out.stride(), *strides, left, right, cap, factor, scale,
    )  # fmt: skip
    choices = (
        causal == 2, masked, left >= 0, right >= 0, softcap is not None, widths[0] != dim,
        widths[1] != value_dim, INTERPRETED,
    )  # fmt: skip
    of_keys, of_rows = tiles(target(q.device), q.dtype, max(widths), mask is not None or softcap is not None)
    size, step, warps, stages = of_keys
    programs = triton.cdiv(keys, size) * kv_heads * batch
    flags = torch.empty(programs, dtype=torch.int32, device=q.device)
    for careful in (False, True):
        launch(
            keys_kernel, (programs,), q.device, q, k, v, grad_out, work, mask, flags, grad_k, grad_v,
            *sizes, *layout, careful, *choices, step, size, *widths, num_warps=warps, num_stages=stages, **OPTIONS,
        )  # fmt: skip
    size, step, warps, stages = of_rows
    programs = triton.cdiv(rows, size) * heads * batch
    flags = torch.empty(programs, dtype=torch.int32, device=q.device)
    for careful in (False, True):
        launch(
            queries_kernel, (programs,), q.device, q, k, v, grad_out, work, mask, flags, grad_q,
            *sizes, *layout, careful, *choices, size, step, *widths, num_warps=warps, num_stages=stages, **OPTIONS,
        )  # fmt: skip


# Registers and shared memory of the largest kernel a case launches, with a tenth to spare.
BUDGET = {
    "llama_training bfloat16": {
        "sm_80": (255, 53504), "sm_90": (255, 131072), "sm_100": (248, 148480), "gfx942": (512, 20480), "matrix": True,
    },
}  # fmt: skip

"""append_kv in Triton: a program takes a few new rows to their places, k turned and both quantised on the way."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.decode import LARGEST
from hexad_kernels.triton.common import FLOAT8, launch, raw, refuse_dtypes, round_even, to_float8
from hexad_kernels.triton.rope import rotated, store_pairs

ROWS = 8


@triton.jit
def limit_of(KIND: tl.constexpr):
    return 127.0 if KIND == 0 else 448.0 if KIND == 1 else 57344.0


@triton.jit
def step_of(largest, has_nan, KIND: tl.constexpr):
    """A quantised row's scale: NaN goes in and comes out."""
    return tl.where(has_nan > 0, float("nan"), tl.div_rn(largest, limit_of(KIND)))


@triton.jit
def quantised(x, scale, KIND: tl.constexpr):
    """As int8 (0) or a kind of float8."""
    q = tl.div_rn(x, tl.where(scale > 0.0, scale, 1.0))
    limit = limit_of(KIND)
    q = tl.where(q != q, 0.0, tl.where(q > limit, limit, tl.where(q < -limit, -limit, q)))
    if KIND == 0:
        return round_even(q).to(tl.int8)
    return to_float8(q, KIND)


@triton.jit
def largest_of(x):
    """The largest magnitude of each row, and whether it holds a NaN."""
    return tl.max(tl.where(x != x, 0.0, tl.abs(x)), 1), tl.max((x != x).to(tl.int32), 1)


@triton.jit
def put(x_ptr, x_col, to_ptr, to_col, scale_ptr, dim, i, here, KIND: tl.constexpr):
    """Rows as they are, or quantised where there is a place for their scales."""
    there = here & (i < dim)
    x = tl.load(x_ptr + i * x_col, mask=there, other=0.0)
    if scale_ptr is not None:
        x = x.to(tl.float32)
        largest, has_nan = largest_of(x)
        scale = step_of(largest, has_nan, KIND)[:, None]
        tl.store(scale_ptr, scale, mask=here)
        tl.store(to_ptr + i * to_col, quantised(x, scale, KIND), mask=there)
    else:
        tl.store(to_ptr + i * to_col, x, mask=there)


@triton.jit
def append_kv_kernel(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, lengths_ptr, table_ptr, cos_ptr, sin_ptr, k_scale_ptr, v_scale_ptr,
    count, heads, rows, page, dim, value_dim, k_batch, k_head, k_row, k_col, v_batch, v_head, v_row, v_col,
    kc_page, kc_head, kc_slot, kc_col, vc_page, vc_head, vc_slot, vc_col, length_row, table_row, table_col,
    cos_row, cos_col, sin_row, sin_col, ks_page, ks_head, ks_slot, vs_page, vs_head, vs_slot,
    INTERLEAVED: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    at = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    here = at < count
    b, h, s = at // (heads * rows), at // rows % heads, at % rows
    place = s + tl.load(lengths_ptr + b * length_row, mask=here, other=0)
    if table_ptr is not None:
        index = tl.load(table_ptr + b * table_row + place // page * table_col, mask=here, other=0).to(tl.int64)
        slot = place % page
    else:
        index = b
        slot = place
    v_scale_at = None
    k_scale_at = None
    if k_scale_ptr is not None:
        k_scale_at = k_scale_ptr + index * ks_page + h * ks_head + slot * ks_slot
        v_scale_at = v_scale_ptr + index * vs_page + h * vs_head + slot * vs_slot
    k_from = k_ptr + b * k_batch + h * k_head + s * k_row
    k_to = k_cache_ptr + index * kc_page + h * kc_head + slot * kc_slot
    i = tl.arange(0, K)[None, :]
    if cos_ptr is not None:
        half = dim // 2
        there = here & (i < half)
        y1, y2 = rotated(
            k_from, k_col, cos_ptr + place * cos_row, sin_ptr + place * sin_row, cos_col, sin_col, half, i, there,
            INTERLEAVED,
        )  # fmt: skip
        if k_scale_ptr is not None:
            largest1, nan1 = largest_of(tl.where(there, y1, 0.0))
            largest2, nan2 = largest_of(tl.where(there, y2, 0.0))
            scale = step_of(tl.maximum(largest1, largest2), tl.maximum(nan1, nan2), KIND)[:, None]
            tl.store(k_scale_at, scale, mask=here)
            y1, y2 = quantised(y1, scale, KIND), quantised(y2, scale, KIND)
        store_pairs(k_to, kc_col, y1, y2, half, i, there, INTERLEAVED)
    else:
        put(k_from, k_col, k_to, kc_col, k_scale_at, dim, i, here, KIND)
    put(
        v_ptr + b * v_batch + h * v_head + s * v_row, v_col,
        v_cache_ptr + index * vc_page + h * vc_head + slot * vc_slot, vc_col, v_scale_at, value_dim,
        tl.arange(0, V)[None, :], here, KIND,
    )  # fmt: skip


def refuses(k: Tensor, v: Tensor, k_cache: Tensor, *rest: object) -> str | None:
    return refuse_dtypes(k, None if k_cache.dtype in LARGEST else k_cache)


def run(
    outputs: tuple[()],
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, block_table: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, interleaved: bool, k_scale: Tensor | None, v_scale: Tensor | None,
) -> None:  # fmt: skip
    batch, heads, rows, dim = k.shape
    count, value_dim = batch * heads * rows, v.shape[3]
    width = triton.next_power_of_2(dim if cos is None else dim // 2)

    def strides(t: Tensor | None, n: int) -> tuple[int, ...]:
        return (0,) * n if t is None else t.stride()

    launch(
        append_kv_kernel, (triton.cdiv(count, ROWS),), k.device,
        k, v, raw(k_cache), raw(v_cache), lengths, block_table, cos, sin, k_scale, v_scale,
        count, heads, rows, k_cache.shape[2], dim, value_dim, *k.stride(), *v.stride(), *k_cache.stride(),
        *v_cache.stride(), lengths.stride(0), *strides(block_table, 2), *strides(cos, 2), *strides(sin, 2),
        *strides(k_scale, 3), *strides(v_scale, 3), interleaved, FLOAT8.get(k_cache.dtype, 0),
        ROWS, width, triton.next_power_of_2(value_dim),
    )  # fmt: skip


BUDGET = {
    "step_float8 bfloat16": {
        "sm_80": (56, 1024),
        "sm_90": (56, 1024),
        "sm_100": (56, 1024),
        "gfx942": (40, 1024),
    },
    "rotated_interleaved float32": {
        "sm_80": (240, 5120),
        "sm_90": (224, 5120),
        "sm_100": (224, 5120),
        "gfx942": (24, 5120),
    },
}

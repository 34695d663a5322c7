"""attention_varlen in Triton: attention's kernel, whose programs look for their sequence in the starts.

The grid follows from shapes alone: Tq / rows of a tile, and one tile more for each sequence. A program finds its
sequence by bisection of the starts on the device, and has nothing to do if its sequence ends before its tile.
"""

from __future__ import annotations

import triton
from torch import Tensor

from hexad_kernels.triton import attention
from hexad_kernels.triton.attention import OPTIONS, attention_kernel, heads_of_a_tile, padded, stride_of
from hexad_kernels.triton.common import INTERPRETED, launch, target


def refuses(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> str | None:
    return attention.refuses(q, k, v, None)


def run(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    out, lse = outputs
    tokens, heads, dim = q.shape
    keys, kv_heads, value_dim = v.shape
    sequences = cu_seqlens_q.shape[0] - 1
    left, right = attention.window(tokens, keys, causal, left, right)
    cap, factor = attention.score_factors(dim, softcap, scale)
    kind = attention.score_kind(None, softcap, alibi_slopes, factor)
    widths = padded(dim), padded(value_dim)
    size, step, warps, stages = attention.tiles(target(q.device), q.dtype, max(widths), kind != 0)
    pack = heads_of_a_tile(triton.cdiv(tokens, max(sequences, 1)), heads // kv_heads, size)
    count = tokens // (size // pack) + sequences
    q_row, q_head, q_col = q.stride()
    k_row, k_head, k_col = k.stride()
    v_row, v_head, v_col = v.stride()
    align, (d, dv, q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head) = attention.aligned(
        dim, value_dim, q_row, q_head, k_row, k_head, v_row, v_head, *out.stride()[:2]
    )  # fmt: skip
    launch(
        attention_kernel, (count * (heads // pack),), q.device,
        q, k, v, None, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, out, lse,
        count, sequences, heads, heads // kv_heads, tokens, keys, d, dv,
        0, q_head, q_row, q_col, 0, k_head, k_row, k_col, 0, v_head, v_row, v_col, 0, 0, 0, 0,
        0, out_head, out_row, 0, lse.stride(0),
        stride_of(alibi_slopes), stride_of(sinks), cu_seqlens_q.stride(0), cu_seqlens_k.stride(0),
        left, right, cap, factor,
        align, True, pack, causal == 2, 0, left >= 0, right >= 0, softcap is not None, alibi_slopes is not None,
        sinks is not None, kind, widths[0] != dim, widths[1] != value_dim, INTERPRETED, size, step, *widths,
        num_warps=warps, num_stages=stages, **OPTIONS,
    )  # fmt: skip


# Registers and shared memory of the largest kernel a case launches, with a tenth to spare.
BUDGET = {
    "mixed_batch bfloat16": {
        "sm_80": (248, 49152),
        "sm_90": (255, 81920),
        "sm_100": (208, 66560),
        "gfx942": (248, 16384),
        "matrix": True,
    },
}

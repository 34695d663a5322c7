"""attention_varlen: attention within each of several sequences that lie packed one after another.

    out[a:b] = attention(q[a:b], k[c:d], v[c:d]),   (a, b) = cu_seqlens_q[n : n + 2], (c, d) = cu_seqlens_k[n : n + 2]

No row is padded and none sees another sequence. Each row has the bits that attention gives its sequence alone.

Paper: Dao 2023 (FlashAttention-2, arXiv 2307.08691), whose packed layout this is.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.attention import (
    CAUSAL,
    DTYPES,
    check_heads,
    check_numbers,
    check_per_head,
    packed,
    refuses,
    window_sides,
)
from hexad_kernels.attention import reference as attend
from hexad_kernels.gradients import through
from hexad_kernels.op import Op


def contract(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check.tensor(q, "q", rank=3)
    check.tensor(k, "k", rank=3)
    check.tensor(v, "v", rank=3)
    tokens, heads, dim = q.shape
    if k.shape[2] != dim:
        check.shape(k, "k", (None, None, dim), "(Tk, Hkv, D)")
    if v.shape[:2] != k.shape[:2]:
        check.shape(v, "v", (*k.shape[:2], None), "(Tk, Hkv, Dv)")
    check_heads(q, heads, k.shape[1], "k")
    check.like(k, "k", q, "q")
    check.like(v, "v", q, "q")
    for value, name in ((cu_seqlens_q, "cu_seqlens_q"), (cu_seqlens_k, "cu_seqlens_k")):
        check.tensor(value, name, rank=1, dtypes=(torch.int32,))
        check.like(value, name, q, "q", dtype=False)
    if cu_seqlens_q.shape[0] < 1:
        raise ValueError("cu_seqlens_q: is empty, wants at least one entry")
    check.shape(cu_seqlens_k, "cu_seqlens_k", (cu_seqlens_q.shape[0],), "cu_seqlens_q's shape")
    check_numbers(softcap, scale)
    if alibi_slopes is not None:
        check_per_head(alibi_slopes, "alibi_slopes", q, heads)
    if sinks is not None:
        check_per_head(sinks, "sinks", q, heads)
    return q.new_empty(tokens, heads, v.shape[2]), check.empty_statistics(q, heads, tokens)


def _starts(cu_seqlens: Tensor, name: str, tokens: int) -> list[int]:
    at = cu_seqlens.tolist()
    if at[0] != 0:
        raise ValueError(f"{name}: starts with {at[0]}, wants 0")
    for i in range(1, len(at)):
        if at[i] < at[i - 1]:
            raise ValueError(f"{name}: falls from {at[i - 1]} to {at[i]} at {i}")
    if at[-1] != tokens:
        raise ValueError(f"{name}: ends with {at[-1]}, wants the {tokens} tokens")
    return at


def reference(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    at_q = _starts(cu_seqlens_q, "cu_seqlens_q", q.shape[0])
    at_k = _starts(cu_seqlens_k, "cu_seqlens_k", k.shape[0])
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    outs, lses = [q[:, :, :0, :1].expand(-1, -1, -1, v.shape[3])], []
    for a, b, c, d in zip(at_q, at_q[1:], at_k, at_k[1:]):
        out, lse = attend(
            q[:, :, a:b], k[:, :, c:d], v[:, :, c:d], None, causal, left, right, softcap, scale, alibi_slopes, sinks
        )  # fmt: skip
        outs.append(out)
        lses.append(lse[0])
    nothing = torch.empty((q.shape[1], 0), dtype=check.statistics_dtype(q.dtype), device=q.device)
    return torch.cat(outs, dim=2)[0].transpose(0, 1).contiguous(), torch.cat([nothing, *lses], dim=1)


def _native(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    native.C.attention_varlen(
        check.unit_stride(q), check.unit_stride(k), check.unit_stride(v), cu_seqlens_q.contiguous(),
        cu_seqlens_k.contiguous(), packed(alibi_slopes), packed(sinks), *outputs, causal, left, right, softcap or 0.0,
        q.shape[2] ** -0.5 if scale is None else scale,
    )  # fmt: skip


def _backward(
    grads: list[Tensor | None], needed: list[bool], args: tuple[Any, ...], outputs: list[Tensor]
) -> list[Tensor]:  # fmt: skip
    """By the op attention_backward; what it does not know comes from the reference."""
    *known, alibi_slopes, sinks = args
    if alibi_slopes is not None or sinks is not None or args[0].dtype == torch.float16:
        return through(reference, grads, needed, args)
    from hexad_kernels.attention_backward import packed_gradients

    return [grad for grad, need in zip(packed_gradients(grads, tuple(known), outputs), needed) if need]


_op = Op(
    "attention_varlen",
    "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, int causal, int left, int right,"
    " float? softcap, float? scale, Tensor? alibi_slopes, Tensor? sinks) -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=DTYPES,
    refuses=refuses,
    cuda_refuses=refuses,
    gradients=(0, 1, 2, 10, 11),
    dtypes=DTYPES,
    backward=_backward,
    cast="lower",
    cast_at=(0, 1, 2),
)


@overload
def attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *,
    causal: bool | str = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *,
    causal: bool | str = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    causal: bool | str = False,
    window: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over packed sequences.

    q             (Tq, Hq, D); float32, bfloat16, float16 (float64 through the reference)
    k, v          (Tk, Hkv, D), (Tk, Hkv, Dv); Hkv divides Hq
    cu_seqlens_q  (N + 1,) int32: sequence n is rows cu[n] to cu[n + 1]; from 0 to Tq, never falling
    cu_seqlens_k  (N + 1,) int32, the same for keys, to Tk
    causal, window, softcap, scale, alibi_slopes, sinks   as in attention, within each sequence
    Returns out (Tq, Hq, Dv) like q; with return_lse also lse (Hq, Tq), float32 (float64 for float64).
    Differentiable in q, k, v, alibi_slopes and sinks. Raises ValueError or TypeError that names the argument; starts
    that do not fit are found before anything is written (on the CPU).
    """
    kind = check.choice(causal, "causal", CAUSAL)
    left, right = window_sides(window, kind != 0)
    out, lse = _op(q, k, v, cu_seqlens_q, cu_seqlens_k, kind, left, right, softcap, scale, alibi_slopes, sinks)
    return (out, lse) if return_lse else out

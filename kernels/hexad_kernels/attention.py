"""attention: every query row's softmax-weighted mean of the values it may see.

    s_ij = scale * <q_i, k_j>              then, with softcap c:  s_ij <- c * tanh(s_ij / c)
    s_ij <- s_ij - slope |i + offset - j|    with alibi_slopes, a slope for each head
    s_ij <- s_ij + mask_ij  or  -inf where key j is hidden from row i
    out_i = sum_j exp(s_ij - lse_i) v_j,   lse_i = ln (sum_j exp(s_ij) + exp(sink))    the sink where given, one a head

A hidden key (mask False or -inf, outside the window, ahead of a causal row) contributes nothing, whatever its key and
value hold. A row that sees nothing gives out = 0, lse = -inf.

The kernels never hold the (Sq, Skv) matrix: keys come in tiles of 64 counted from key 0 and the softmax is carried
from tile to tile. A row's bits depend on its own visible keys only.

Papers: Vaswani et al. 2017 (arXiv 1706.03762), Milakov & Gimelshein 2018 (online softmax, 1805.02867), Dao et al. 2022
(FlashAttention, 2205.14135), Ainslie et al. 2023 (grouped queries, 2305.13245), Press et al. 2021 (ALiBi, 2108.12409),
OpenAI 2025 (gpt-oss, arXiv 2508.10925: the learnt sink in the denominator).
"""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.gradients import through
from hexad_kernels.op import Op

MAX_HEAD_DIM = 3840  # what the CPU kernels' scratch holds
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FAR = 2**40  # beyond any sequence, and no overflow when added to a position
CAUSAL: dict[Any, int] = {False: 0, True: 1, "upper_left": 2}


def window_sides(window: object, causal: bool) -> tuple[int, int]:
    """(left, right): a row at position p sees keys p - left .. p + right; -1: no limit on that side."""
    if window is None:
        return -1, -1
    if type(window) is int and window >= 1:
        side = min(window, FAR) - 1
        return side, (0 if causal else side)
    if isinstance(window, (tuple, list)) and len(window) == 2 and all(type(w) is int and w >= -1 for w in window):
        return min(window[0], FAR), min(window[1], FAR)
    raise ValueError(f"window: got {window!r}, wants None, an int of at least 1, or (left, right) ints of at least -1")


def check_numbers(softcap: float | None, scale: float | None) -> None:
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap: got {softcap}, wants a positive number or None")
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"scale: got {scale}, wants a finite number or None for 1/sqrt(D)")


def check_heads(q: Tensor, heads: int, kv_heads: int, name: str) -> None:
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{name}: has {kv_heads} heads, wants a number that divides q's {heads}")
    if q.shape[-1] < 1:
        raise ValueError("q: got head dimension 0, wants at least 1")


def check_per_head(value: Tensor, name: str, q: Tensor, heads: int) -> None:
    """One number a query head, float32 (float64 for float64)."""
    check.tensor(value, name, rank=1, dtypes=(check.statistics_dtype(q.dtype),))
    check.like(value, name, q, "q", dtype=False)
    check.shape(value, name, (heads,), "(Hq,)")


def packed(per_head: Tensor | None) -> Tensor | None:
    return None if per_head is None else per_head.contiguous()


def _check_mask(mask: Tensor, q: Tensor, want: tuple[int, int, int, int]) -> None:
    check.tensor(mask, "mask", dtypes=(torch.bool, *check.FLOATS))
    check.like(mask, "mask", q, "q", dtype=False)
    if mask.dtype not in (torch.bool, torch.float32, q.dtype):
        raise TypeError(f"mask: got {check.names([mask.dtype])}, wants bool, float32 or q's {check.names([q.dtype])}")
    if mask.ndim > 4 or any(g not in (1, w) for g, w in zip(reversed(mask.shape), reversed(want))):
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, wants one that broadcasts to {want}")


def contract(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check.tensor(q, "q", rank=4)
    check.tensor(k, "k", rank=4)
    check.tensor(v, "v", rank=4)
    batch, heads, rows, dim = q.shape
    _, kv_heads, keys, value_dim = v.shape
    if k.shape != (batch, kv_heads, keys, dim) or v.shape[0] != batch:
        check.shape(k, "k", (batch, None, None, dim), "(B, Hkv, Skv, D)")
        check.shape(v, "v", (*k.shape[:3], None), "(B, Hkv, Skv, Dv)")
    check_heads(q, heads, kv_heads, "k")
    check.like(k, "k", q, "q")
    check.like(v, "v", q, "q")
    if mask is not None:
        _check_mask(mask, q, (batch, heads, rows, keys))
    check_numbers(softcap, scale)
    if alibi_slopes is not None:
        check_per_head(alibi_slopes, "alibi_slopes", q, heads)
    if sinks is not None:
        check_per_head(sinks, "sinks", q, heads)
    return q.new_empty(batch, heads, rows, value_dim), check.empty_statistics(q, batch, heads, rows)


def ahead_of(rows: int, keys: int, causal: int, device: torch.device) -> Tensor:
    """(rows, keys): how far each key lies after the row's position."""
    position = torch.arange(rows, device=device)[:, None] + (0 if causal == 2 else keys - rows)
    return torch.arange(keys, device=device) - position


def visible_keys(rows: int, keys: int, causal: int, left: int, right: int, device: torch.device) -> Tensor:
    """(rows, keys) bool: what causality and the window leave."""
    ahead = ahead_of(rows, keys, causal, device)
    visible = torch.ones((rows, keys), dtype=torch.bool, device=device)
    if left >= 0:
        visible &= ahead >= -left
    if right >= 0:
        visible &= ahead <= right
    if causal:
        visible &= ahead <= 0
    return visible


def _weighted(p: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """p @ v in which hidden keys contribute nothing even where v is NaN or infinite."""
    finite = v.isfinite()
    if torch._C._functorch.peek_interpreter_stack() is None and finite.all():  # vmap branches on no value
        return p @ v
    special = p.unsqueeze(-1) * torch.where(finite, 0.0, v).unsqueeze(-3)
    return p @ torch.where(finite, v, 0.0) + torch.where(visible.unsqueeze(-1), special, 0.0).sum(-2)


def reference(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype = check.statistics_dtype(q.dtype)
    group = q.shape[1] // k.shape[1]
    k, v = (t.to(dtype).repeat_interleave(group, dim=1) for t in (k, v))
    s = q.to(dtype) * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.mT
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    if alibi_slopes is not None:
        s = s - alibi_slopes.to(dtype)[:, None, None] * ahead_of(q.shape[2], k.shape[2], causal, q.device).abs()
    visible = visible_keys(q.shape[2], k.shape[2], causal, left, right, q.device)
    if mask is not None and mask.dtype == torch.bool:
        visible = visible & mask
    elif mask is not None:
        visible = visible & (mask != -math.inf)
        s = s + mask.to(dtype)
    visible = visible.expand(s.shape)
    s = s.masked_fill(~visible, -math.inf)
    # The extra column is the sink; without one it makes the maximum of no keys -inf.
    extra = s.new_full((), -math.inf) if sinks is None else sinks.to(dtype)[:, None, None]
    extra = extra.expand(*s.shape[:-1], 1)
    m = torch.cat([s, extra], -1).detach().amax(-1, keepdim=True)
    m = torch.where(m == -math.inf, 0.0, m)
    p = torch.exp(s - m)
    total = p.sum(-1, keepdim=True) + torch.exp(extra - m)
    nothing = total == 0
    total = torch.where(nothing, 1.0, total)
    out = (_weighted(p, v, visible) / total).to(q.dtype)
    return out, torch.where(nothing, -math.inf, m + torch.log(total)).squeeze(-1)


def refuses(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> str | None:
    """Shared by the ops whose values end in the head dimension."""
    if q.shape[-1] > MAX_HEAD_DIM or v.shape[-1] > MAX_HEAD_DIM:
        return f"head dimension over {MAX_HEAD_DIM}"
    return None


def _native(
    outputs: tuple[Tensor, Tensor],
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: int, left: int, right: int,
    softcap: float | None, scale: float | None, alibi_slopes: Tensor | None, sinks: Tensor | None,
) -> None:  # fmt: skip
    if mask is not None and mask.ndim < 4:
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    native.C.attention(
        check.unit_stride(q), check.unit_stride(k), check.unit_stride(v), mask,
        packed(alibi_slopes), packed(sinks), *outputs, causal, left, right, softcap or 0.0,
        q.shape[3] ** -0.5 if scale is None else scale,
    )  # fmt: skip


def _backward(
    grads: list[Tensor | None], needed: list[bool], args: tuple[Any, ...], outputs: list[Tensor]
) -> list[Tensor]:  # fmt: skip
    """By the op attention_backward; what it does not know comes from the reference."""
    *known, alibi_slopes, sinks = args
    found = None
    if not needed[3] and alibi_slopes is None and sinks is None:
        from hexad_kernels.attention_backward import gradients

        found = gradients(grads, tuple(known), outputs)
    if found is None:
        return through(reference, grads, needed, args)
    return [grad for grad, need in zip(found, needed) if need]


_op = Op(
    "attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, int causal, int left, int right, float? softcap, float? scale,"
    " Tensor? alibi_slopes, Tensor? sinks) -> (Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=DTYPES,
    refuses=refuses,
    cuda_refuses=refuses,
    gradients=(0, 1, 2, 3, 9, 10),
    dtypes=DTYPES,
    backward=_backward,
    batch=lambda *_: {0: 4, 1: 4, 2: 4, 3: 4},
    cast="lower",
    cast_at=(0, 1, 2),
    backward_on=("cpu", "cuda", "cuda-emulated", "triton", "triton-interpreted"),
)


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *,
    causal: bool | str = ..., mask: Tensor | None = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[False] = ...,
) -> Tensor: ...  # fmt: skip


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *,
    causal: bool | str = ..., mask: Tensor | None = ..., window: int | tuple[int, int] | None = ...,
    softcap: float | None = ..., scale: float | None = ..., alibi_slopes: Tensor | None = ...,
    sinks: Tensor | None = ..., return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool | str = False,
    mask: Tensor | None = None,
    window: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over a whole sequence of queries.

    q          (B, Hq, Sq, D); float32, bfloat16, float16 (float64 through the reference)
    k, v       (B, Hkv, Skv, D), (B, Hkv, Skv, Dv), dtype and device of q; Hkv divides Hq: query head h reads key head
               h // (Hq / Hkv). Any strides.
    causal     True: row i sits at position i + Skv - Sq (the last row sees every key); "upper_left": at position i
    mask       broadcastable to (B, Hq, Sq, Skv): bool (True = attend), or added to the scores (float32 or q's dtype)
    window     w: keys at most w - 1 before the row's position, and as far after it unless causal;
               (left, right): keys from position - left to position + right, -1 = no limit
    softcap    c > 0: scores become c * tanh(s / c), before masks
    scale      default 1 / sqrt(D)
    alibi_slopes  (Hq,) float32: the score of a key at a distance d from the row's position falls by slope * d
    sinks      (Hq,) float32: a logit that takes its share of each row's weight and has no value
    Returns out (B, Hq, Sq, Dv) like q; with return_lse also lse (B, Hq, Sq), natural logarithm, float32 (float64 for
    float64). A row without a visible key: out 0, lse -inf (or the sink). Differentiable in q, k, v, a floating mask,
    alibi_slopes and sinks.
    Raises ValueError (shapes, options, devices) or TypeError (dtypes) that names the argument.
    """
    kind = check.choice(causal, "causal", CAUSAL)
    left, right = window_sides(window, kind != 0)
    out, lse = _op(q, k, v, mask, kind, left, right, softcap, scale, alibi_slopes, sinks)
    return (out, lse) if return_lse else out

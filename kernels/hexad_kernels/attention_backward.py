"""attention_backward: the gradients of attention, from the gradients of its outputs.

    p_ij = exp(s_ij - lse_i), 0 where key j is hidden from row i        s as in attention
    delta_i = <grad_out_i, out_i> - grad_lse_i
    ds_ij = p_ij (<grad_out_i, v_j> - delta_i) * d s_ij / d <q_i, k_j>
            (the last factor: scale, with a softcap c times 1 - tanh^2(scale <q_i, k_j> / c))
    grad_q_i = sum_j ds_ij k_j,   grad_k_j = sum_i ds_ij q_i,   grad_v_j = sum_i p_ij grad_out_i

A hidden pair gives nothing, whatever it holds. With grouped queries the sums over i run over every head of the group.

The kernel never holds the (Sq, Skv) matrix: p comes again from q, k and lse, tile by tile. The order of each sum is
fixed (grad_q: over keys; grad_k and grad_v: over heads, then queries), for any number of threads.

Paper: Dao et al. 2022 (FlashAttention, arXiv 2205.14135), Dao 2023 (FlashAttention-2, 2307.08691).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hexad_kernels import check, native
from hexad_kernels.attention import (
    CAUSAL,
    DTYPES,
    _check_mask,
    check_heads,
    check_numbers,
    refuses,
    visible_keys,
    window_sides,
)
from hexad_kernels.op import Op


def contract(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Tensor | None, causal: int, left: int, right: int, softcap: float | None, scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    check.tensor(q, "q", rank=4)
    check.tensor(k, "k", rank=4)
    check.tensor(v, "v", rank=4)
    batch, heads, rows, dim = q.shape
    check.shape(k, "k", (batch, None, None, dim), "(B, Hkv, Skv, D)")
    check.shape(v, "v", (*k.shape[:3], None), "(B, Hkv, Skv, Dv)")
    check_heads(q, heads, k.shape[1], "k")
    check.like(k, "k", q, "q")
    check.like(v, "v", q, "q")
    size = (batch, heads, rows, v.shape[3])
    check.operand(grad_out, "grad_out", size, q, "q", "(B, Hq, Sq, Dv)")
    check.operand(out, "out", size, q, "q", "(B, Hq, Sq, Dv)")
    for value, name in ((lse, "lse"), (grad_lse, "grad_lse")):
        if value is not None:
            check.tensor(value, name, rank=3, dtypes=(check.statistics_dtype(q.dtype),))
            check.like(value, name, q, "q", dtype=False)
            check.shape(value, name, size[:3], "(B, Hq, Sq)")
    if mask is not None:
        _check_mask(mask, q, (batch, heads, rows, k.shape[2]))
    check_numbers(softcap, scale)
    return check.empty_like(q), check.empty_like(k), check.empty_like(v)


def _product(a: Tensor, b: Tensor, visible: Tensor) -> Tensor:
    """a @ b in which hidden pairs (a is 0 there) contribute nothing even where b is NaN or infinite."""
    finite = b.isfinite()
    if finite.all():
        return a @ b
    special = torch.where(visible.unsqueeze(-1), a.unsqueeze(-1) * torch.where(finite, 0.0, b).unsqueeze(-3), 0.0)
    return a @ torch.where(finite, b, 0.0) + special.sum(-2)


def reference(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Tensor | None, causal: int, left: int, right: int, softcap: float | None, scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = check.statistics_dtype(q.dtype)
    kv_heads, keys = k.shape[1:3]
    group = q.shape[1] // kv_heads
    q_, g, o = (t.to(dtype) for t in (q, grad_out, out))
    k_, v_ = (t.to(dtype).repeat_interleave(group, dim=1) for t in (k, v))
    slope: float | Tensor = q.shape[3] ** -0.5 if scale is None else scale
    s = q_ * slope @ k_.mT
    if softcap is not None:
        t = torch.tanh(s / softcap)
        s, slope = softcap * t, slope * (1 - t * t)
    visible = visible_keys(q.shape[2], keys, causal, left, right, q.device) & (lse != -math.inf).unsqueeze(-1)
    if mask is not None and mask.dtype == torch.bool:
        visible = visible & mask
    elif mask is not None:
        visible = visible & (mask != -math.inf)
        s = s + mask.to(dtype)
    p = torch.where(visible, torch.exp(s - lse.unsqueeze(-1)), 0.0)
    delta = (g * o).sum(-1) - (0.0 if grad_lse is None else grad_lse)
    ds = torch.where(visible, p * (g @ v_.mT - delta.unsqueeze(-1)) * slope, 0.0)
    grad_k, grad_v = _product(ds.mT, q_, visible.mT), _product(p.mT, g, visible.mT)
    grad_k, grad_v = (t.unflatten(1, (kv_heads, group)).sum(2) for t in (grad_k, grad_v))
    return _product(ds, k_, visible).to(q.dtype), grad_k.to(q.dtype), grad_v.to(q.dtype)


def _refuses(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: object
) -> str | None:  # fmt: skip
    return refuses(q, k, v)


def _cuda_refuses(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: object
) -> str | None:  # fmt: skip
    return "head dimension over 256" if max(q.shape[3], v.shape[3]) > 256 else None


def _padded(n: int) -> int:
    return -(-n // 32) * 32


def workspace(tasks: int, group: int, rows: int, dim: int, value_dim: int) -> tuple[int, int, bool]:
    """(floats, slots, split) of a call with `tasks` key heads in its batch, each read by `group` query heads."""
    threads = torch.get_num_threads()
    # Sharing a head among threads makes the scores twice: 7 products rather than 5.
    turns = -(-tasks // threads)
    split = 5 * turns * threads > 7 * tasks
    slots = threads if split else max(1, min(threads, tasks))
    dim = _padded(dim)
    room = 128 * (6 * (dim + _padded(value_dim)) + 1024) + (256 if split else _padded(rows) * group) * dim
    return slots * room + tasks * group * rows, slots, split


def _native(
    outputs: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    mask: Tensor | None, causal: int, left: int, right: int, softcap: float | None, scale: float | None,
) -> None:  # fmt: skip
    if mask is not None and mask.ndim < 4:
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
    batch, heads, rows, dim = q.shape
    kv_heads = k.shape[1]
    if q.is_cuda or native.emulated:
        floats, slots, split = batch * heads * rows, 0, False
    else:
        floats, slots, split = workspace(batch * kv_heads, heads // kv_heads, rows, dim, v.shape[3])
    native.C.attention_backward(
        check.unit_stride(grad_out), check.unit_stride(q), check.unit_stride(k), check.unit_stride(v),
        check.unit_stride(out), lse, grad_lse, mask, *outputs, q.new_empty(floats, dtype=torch.float32), slots, split,
        causal, left, right, softcap or 0.0, dim**-0.5 if scale is None else scale,
    )  # fmt: skip


_op = Op(
    "attention_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? mask,"
    " int causal, int left, int right, float? softcap, float? scale) -> (Tensor, Tensor, Tensor)",
    contract=contract,
    reference=reference,
    native=_native,
    cuda=DTYPES,
    refuses=_refuses,
    batch=lambda *_: {2: 4, 0: 4, 1: 3, 3: 4, 4: 4, 5: 4, 6: 3, 7: 4},
    cuda_refuses=_cuda_refuses,
)


def gradients(grads: list[Tensor | None], args: tuple[Any, ...], outputs: list[Tensor]) -> tuple[Tensor, ...] | None:
    """Of attention's q, k and v, as autograd asks for them: a missing gradient is zero. None: no kernel makes them."""
    out, lse = outputs
    grad_out, grad_lse = grads
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    q, k, v, *rest = args
    flat = (grad_out, grad_lse, q, k, v, out, lse, *rest)
    if not _op.has_kernel(flat):
        return None
    found: tuple[Tensor, ...] = _op(*flat)
    return found


def packed_gradients(grads: list[Tensor | None], args: tuple[Any, ...], outputs: list[Tensor]) -> list[Tensor]:
    """Of attention_varlen's q, k and v: one sequence after another, each as attention_backward has it alone."""
    q, k, v, cu_seqlens_q, cu_seqlens_k, *rest = args
    out, lse = outputs
    grad_out, grad_lse = grads
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    made = [check.empty_like(t) for t in (q, k, v)]
    at_q, at_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()

    def rows(t: Tensor, begin: int, end: int) -> Tensor:
        return t[begin:end].transpose(0, 1).unsqueeze(0)

    for a, b, c, d in zip(at_q, at_q[1:], at_k, at_k[1:]):
        mine = rows(made[0], a, b), rows(made[1], c, d), rows(made[2], c, d)
        _native(
            mine, rows(grad_out, a, b), None if grad_lse is None else grad_lse[:, a:b].unsqueeze(0), rows(q, a, b),
            rows(k, c, d), rows(v, c, d), rows(out, a, b), lse[:, a:b].unsqueeze(0), None, *rest,
        )  # fmt: skip
    return made


def attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_lse: Tensor | None = None,
    *,
    causal: bool | str = False,
    mask: Tensor | None = None,
    window: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of attention in q, k and v. Autograd through `attention` calls it; so may a host with its own tape.

    grad_out   (B, Hq, Sq, Dv) like q: the gradient of out. Any strides.
    q, k, v    as attention was given them; so are mask, causal, window, softcap and scale
    out, lse   as attention returned them; lse (B, Hq, Sq) float32 (float64 for float64)
    grad_lse   (B, Hq, Sq), the gradient of lse; None: zero
    Returns (grad_q, grad_k, grad_v), each like q, k, v. A row without a visible key gets and gives none.
    The gradient of a floating mask is left to autograd through `attention`.
    Raises ValueError (shapes, options, devices) or TypeError (dtypes) that names the argument.
    """
    kind = check.choice(causal, "causal", CAUSAL)
    left, right = window_sides(window, kind != 0)
    grads: tuple[Tensor, Tensor, Tensor] = _op(
        grad_out, grad_lse, q, k, v, out, lse, mask, kind, left, right, softcap, scale
    )
    return grads

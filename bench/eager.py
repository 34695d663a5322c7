"""What a torch user would write for each op: the other side of the ratio, eager and compiled.

Ops not named here are timed as their reference is written, which may be slower than what a torch user tunes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import hexad_kernels
from hexad_kernels.maskedconv import MASKS, taps_before
from hexad_kernels.pack import FORMS, unpack
from hexad_kernels.winograd import WEIGHTS as WINOGRAD_WEIGHTS


def attention(
    q, k, v, *, causal=False, mask=None, window=None, softcap=None, scale=None, alibi_slopes=None, sinks=None,
    return_lse=False,
):  # fmt: skip
    if any(option is not None for option in (window, softcap, alibi_slopes, sinks)):
        return None
    lower_right = causal is True and q.shape[2] != k.shape[2]
    if lower_right:
        return None
    gqa = q.shape[1] != k.shape[1]
    return lambda: F.scaled_dot_product_attention(q, k, v, mask, 0.0, bool(causal), scale=scale, enable_gqa=gqa)


def attention_backward(
    grad_out, q, k, v, out, lse, grad_lse=None, *, causal=False, mask=None, window=None, softcap=None, scale=None
):
    run = attention(q, k, v, causal=causal, mask=mask, window=window, softcap=softcap, scale=scale)
    if run is None or grad_lse is not None:
        return None
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    with torch.enable_grad():
        graph = attention(*leaves, causal=causal, mask=mask, scale=scale)()
    return lambda: torch.autograd.grad(graph, leaves, grad_out, retain_graph=True)


def decode(
    q, k_cache, v_cache, lengths, *, block_table=None, window=None, softcap=None, scale=None,
    k_scale=None, v_scale=None, alibi_slopes=None, sinks=None, return_lse=False,
):  # fmt: skip
    """Pages are gathered and int8 is widened first, as a torch user has to."""
    if window is not None or softcap is not None or alibi_slopes is not None or sinks is not None:
        return None
    longest = int(lengths.max())
    places = torch.arange(longest)
    mask = None if (lengths == longest).all() else (places < lengths[:, None])[:, None, None]
    gqa = q.shape[1] != k_cache.shape[1]

    def rows(cache, scales):
        if block_table is not None:
            cache = cache[block_table.long()].transpose(1, 2).flatten(2, 3)
            scales = None if scales is None else scales[block_table.long()].transpose(1, 2).flatten(2, 3)
        cache = cache[:, :, :longest]
        return cache if scales is None else cache.to(q.dtype) * scales[:, :, :longest, None].to(q.dtype)

    def run():
        k, v = rows(k_cache, k_scale), rows(v_cache, v_scale)
        return F.scaled_dot_product_attention(q.unsqueeze(2), k, v, mask, scale=scale, enable_gqa=gqa)

    return run


ACTIVATIONS: dict[str | None, Callable[..., Any]] = {
    None: lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def linear(x, weight, bias=None, *, activation=None, residual=None):
    if str(activation).endswith("gate"):
        gate = ACTIVATIONS[activation.removesuffix("_gate")]

        def run():
            g, u = F.linear(x, weight, bias).chunk(2, -1)
            return gate(g) * u if residual is None else gate(g) * u + residual

        return run
    act = ACTIVATIONS[activation]
    if residual is None:
        return lambda: act(F.linear(x, weight, bias))
    return lambda: act(F.linear(x, weight, bias)) + residual


def linear_packed(x, panels, bias=None, *, form, rows, activation=None, residual=None):
    """The dense weight in x's dtype, whatever the form."""
    weight = unpack(panels, FORMS[form], rows, x.shape[-1]).to(x.dtype)
    return linear(x, weight, bias, activation=activation, residual=residual)


def maskedconv(x, weight, bias=None, *, mask="B", row=None, col=None):
    """conv2d with weights that were masked when the model was loaded, over what the asked for pixels see."""
    kh, kw = weight.shape[2:]
    first = taps_before(MASKS[mask], kh, kw)
    kept = torch.where(torch.arange(kh * kw).view(kh, kw) < first, weight, 0)
    if row is None:
        return lambda: F.conv2d(x, kept, bias, padding=(kh // 2, kw // 2))
    seen = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2))[:, :, row : row + kh]
    seen = seen if col is None else seen[..., col : col + kw]
    return lambda: F.conv2d(seen, kept, bias).flatten(2 if col is None else 1)


def winograd(x, taps, bias=None, *, outputs):
    """conv2d with the weight that the taps were made of."""
    matrix = torch.linalg.pinv(torch.tensor(WINOGRAD_WEIGHTS, dtype=torch.float64) / 24)
    points = taps.double().permute(1, 3, 2, 0).flatten(0, 1)[:outputs].unflatten(-1, (6, 6))
    weight = (matrix @ points @ matrix.T).float().contiguous()
    return lambda: F.conv2d(x, weight, bias, padding=1)


def norm(
    x, weight=None, bias=None, *, kind="layer", eps=1e-5, num_groups=None, scale=None, shift=None, activation=None
):
    def run():
        if kind == "layer":
            y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)
        elif kind == "rms":
            y = F.rms_norm(x, x.shape[-1:], weight, eps)
            y = y if bias is None else y + bias
        else:
            y = F.group_norm(x, num_groups, weight, bias, eps)
        if scale is not None or shift is not None:
            inner = [None] * (x.ndim - 2)
            middle = (slice(None), slice(None), *inner) if kind == "group" else (slice(None), *inner, slice(None))
            y = y * (1 + scale[middle]) if scale is not None else y
            y = y + shift[middle] if shift is not None else y
        return F.silu(y) if activation == "silu" else y

    return run


def invconv(x, weight, bias=None):
    kernel = weight.reshape(*weight.shape, *[1] * (x.ndim - 2))
    conv = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}.get(x.ndim)
    return (lambda: conv(x, kernel, bias)) if conv else (lambda: F.linear(x, weight, bias))


def randn(seeds, shape, *, offset=0):
    return lambda: torch.randn(len(seeds), *shape)


def sample(logits, seeds=None, *, position=0, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Temperature, cuts by sorting, torch.multinomial; scalars only."""
    if any(isinstance(v, torch.Tensor) for v in (temperature, top_k, top_p, min_p)):
        return None

    def run():
        if temperature == 0:
            return logits.argmax(-1)
        scaled = logits.float() / temperature
        if top_k:
            scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[:, -1:], -torch.inf)
        if top_p < 1:
            ordered, place = scaled.sort(descending=True)
            share = ordered.softmax(-1)
            cut = share.cumsum(-1) - share >= top_p
            scaled = scaled.masked_fill(cut.scatter(1, place, cut), -torch.inf)
        chances = scaled.softmax(-1)
        if min_p:
            chances = chances.masked_fill(chances < min_p * chances.amax(-1, keepdim=True), 0)
        return torch.multinomial(chances, 1)

    return run


def step(table, index, x, model_output, uncond=None, *, history=(), last=None, noise=None, seeds=None, outputs=1):
    if seeds is not None:
        return None
    (a, b, clip, guidance, *_), *rows = table[int(index)].tolist()
    others = [*history, *[None] * (3 - len(history)), last, noise]

    def run():
        m = model_output if uncond is None else uncond + guidance * (model_output - uncond)
        p = a * x + b * m
        p = p if clip == float("inf") else p.clamp(-clip, clip)
        return [sum(c * t for c, t in zip(row, (x, m, p, *others)) if c) for row in rows[:outputs]]

    return run


def vq(x, codebook):
    def run():
        index = torch.cdist(x.reshape(-1, x.shape[-1]).float(), codebook.float()).argmin(-1).view(x.shape[:-1])
        return codebook[index], index

    return run


def eager(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """A call without arguments that does the op's work in plain torch; None if torch has no sensible form."""
    if name in globals() and name not in {"eager"}:
        return globals()[name](*args, **kwargs)

    def run():
        with hexad_kernels.backend("reference"):
            return getattr(hexad_kernels, name)(*args, **kwargs)

    return run


def compiled(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The same through torch.compile; None if it has no such form or does not compile."""
    plain = eager(name, args, kwargs)
    if plain is None:
        return None
    if name in globals():
        run = torch.compile(plain, dynamic=False)
    else:
        op = hexad_kernels.OPS[name]
        flat = hexad_kernels.explain(name, *args, **kwargs).arguments
        run = torch.compile(lambda: op.reference(*flat), dynamic=False)
    try:
        run()
    except Exception:  # torch.compile fails in many ways; the benchmark goes on and prints a dash
        return None
    return run

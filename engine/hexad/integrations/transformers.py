"""Attention of Hugging Face transformers on hexad's kernels.

    import hexad.integrations.transformers
    hexad.integrations.transformers.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="hexad")   # or set_attn_implementation

The host hands an attention function queries (B, Hq, Sq, D), keys and values (B, Hkv, Skv, D) with heads not repeated,
and whatever the mask function registered under the same name made. Without such a function the host passes no mask at
all, padded or not; that is why both are registered here and why `attend` refuses to run when its mask function is gone.

What the host asks for and hexad does not do raises before anything is computed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.utils.output_capturing import _active_collector

import hexad_kernels as hk
from hexad.integrations.host import check_version

NAME = "hexad"
TESTED = ("5.22", "5.24")  # from, below


class Unsupported(ValueError):
    """The host asks for something that hexad's attention does not do; nothing was computed."""


def register() -> None:
    """Make "hexad" an `attn_implementation`: the attention function and its mask function. Again is harmless.

    Warns once if the installed transformers is outside the range that was tested.
    """
    check_version("transformers", *TESTED)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask)


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """(B, 1, Sq, Skv) bool, True = attend; None where causality or nothing at all says it, as for the host's sdpa."""
    return sdpa_mask(*args, **kwargs)


def _refuse(attention_mask: Tensor | None, dropout: float, asked: dict[str, Any]) -> None:
    if ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.get(NAME) is not mask:
        raise RuntimeError(
            f"attention_mask: the mask function of {NAME!r} is not registered, so padding and windows would be lost; "
            "call hexad.integrations.transformers.register()"
        )
    if attention_mask is not None and attention_mask.ndim != 4:
        raise Unsupported(f"attention_mask: got {attention_mask.ndim} dimensions, wants (B, 1, Sq, Skv) or None")
    if dropout:
        raise Unsupported(f"dropout: got {dropout}, attention has none; call model.eval() or set it to 0 in the config")
    # Some models name the wish in the call, for others the host records what layers return.
    if asked.get("output_attentions") or any("attentions" in key for key in _active_collector.get() or ()):
        raise Unsupported("output_attentions: attention weights are never computed; use 'eager'")
    if asked.get("cache") is not None:
        raise Unsupported("cache: continuous batching is not supported; use 'sdpa' or 'paged|eager' for it")
    if attention_mask is None and asked.get("cu_seq_lens_q") is not None:
        raise Unsupported(
            "cu_seq_lens_q: packed sequences need a mask; pass position_ids without a cache, or a 4-D mask"
        )
    for sparse in ("indices", "block_indices"):
        if asked.get(sparse) is not None:
            raise Unsupported(f"{sparse}: attention over chosen keys is not supported; use 'eager'")


def _biased(bias: Tensor, attention_mask: Tensor | None) -> Tensor:
    """One additive mask of a position bias and a mask."""
    if attention_mask is None:
        return bias
    if attention_mask.dtype == torch.bool:
        return torch.where(attention_mask, bias, -math.inf)
    return bias + attention_mask


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """The host's attention function.

    query           (B, Hq, Sq, D), key (B, Hkv, Skv, D), value (B, Hkv, Skv, Dv), any strides
    attention_mask  what `mask` made, or the caller's own (B or 1, H or 1, Sq, Skv), bool or additive
    is_causal       None: the module's own; rows count from key 0 (a static cache is longer than its prompt)
    softcap         of Gemma-2; s_aux: a sink's logit per head, of gpt-oss; position_bias: of T5, added to the scores
    Returns (B, Sq, Hq, Dv) contiguous, and no weights. Raises Unsupported or RuntimeError before computing.
    """
    _refuse(attention_mask, dropout, asked)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = query.shape[2] > 1 and attention_mask is None and is_causal
    if position_bias is not None:
        attention_mask = _biased(position_bias, attention_mask)
    sinks: dict[str, Any] = {}
    if s_aux is not None:
        # A parameter of the model's dtype; the kernels take what joins a sum of scores in the scores' own.
        sinks["sinks"] = s_aux.to(torch.float64 if query.dtype == torch.float64 else torch.float32)
    out = hk.attention(
        query, key, value,
        causal="upper_left" if causal else False, mask=attention_mask, softcap=softcap, scale=scaling, **sinks,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous(), None

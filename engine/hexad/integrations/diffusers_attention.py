"""Attention for diffusers: a backend of its dispatcher, and processors for its older `Attention` class.

Models written since 2025 (Flux, Wan, Qwen-Image) call a dispatcher. The older class (UNets, AutoencoderKL, DiT,
SD3, PixArt) asks a processor object, which never consults the dispatcher.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import hexad_kernels as hk
from hexad.integrations import layers
from hexad.integrations.layers import State, host_serves

NAME = "hexad"


def register() -> Any:
    """Add the backend "hexad" to the attention dispatcher and return its enum member; again: the same member.

    The dispatcher has no public way in and its names are a closed enum, so the enum is given a member, as
    `Enum` itself does when its class is made.
    """
    from diffusers.models import attention_dispatch as dispatch

    names = dispatch.AttentionBackendName
    known = names._value2member_map_
    if NAME not in known:
        member = str.__new__(names, NAME)
        member._name_, member._value_ = NAME.upper(), NAME
        names._member_map_[NAME.upper()] = member  # type: ignore[index]
        names._member_names_.append(NAME.upper())
        known[NAME] = member
        dispatch._AttentionBackendRegistry.register(member)(_dispatched)
    return known[NAME]


def _dispatched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: object = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """query (B, S, H, D), key and value (B, Skv, Hkv, D); attn_mask (B, Skv) or broadcastable to (B, H, S, Skv)."""
    if dropout_p:
        raise ValueError(f"hexad attention: got dropout_p={dropout_p}, wants 0: it has no dropout")
    if _parallel_config is not None:
        raise ValueError("hexad attention: context parallelism is not supported; disable it or choose another backend")
    if attn_mask is not None and attn_mask.ndim == 2 and attn_mask.shape == (query.shape[0], key.shape[1]):
        attn_mask = attn_mask[:, None, None]
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    # torch's is_causal counts rows from key 0.
    out, lse = hk.attention(
        q, k, v, mask=attn_mask, causal="upper_left" if is_causal else False, scale=scale, return_lse=True
    )
    out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H * D) -> (B, H, S, D)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merged(x: Tensor) -> Tensor:
    """(B, H, S, D) -> (B, S, H * D)"""
    return x.transpose(1, 2).flatten(2)


def _normed(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _grouped(attn: Any, x: Tensor) -> Tensor:
    return x if attn.group_norm is None else attn.group_norm(x.mT).mT


def _out(attn: Any, x: Tensor) -> Tensor:
    for layer in attn.to_out:  # a linear map and its dropout
        x = layer(x)
    return x


def _joinable(parts: tuple[Any, ...]) -> bool:
    states = [
        getattr(part, "_hexad", None) for part in parts if not part._forward_hooks and not part._forward_pre_hooks
    ]
    packed = all(s is not None and s.forward is layers.linear and s.weights != "dense" for s in states)
    return packed and len(states) == 3 and len({(p.weight.shape, p.bias is None) for p in parts}) == 1


class Processor:
    """What `AttnProcessor2_0` computes: self- or cross-attention over tokens (B, S, C) or pixels (B, C, H, W).

    Where a token's query, key and value come from packed weights of one shape, they are one product.
    """

    def __init__(self) -> None:
        self.joined: State | None = None

    def projected(self, attn: Any, x: Tensor, context: Tensor) -> Iterable[Tensor]:
        parts = (attn.to_q, attn.to_k, attn.to_v)
        if x is not context or torch.compiler.is_compiling() or not _joinable(parts) or host_serves(x, parts[0].weight):
            return (part(t) for part, t in zip(parts, (x, context, context)))
        if self.joined is None:
            self.joined = State("", layers.linear, weights=parts[0]._hexad.weights)
            layers.share(self.joined, *parts)
        return layers.joined(self.joined, x, *parts).chunk(3, dim=-1)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **ignored: Any,
    ) -> Tensor:
        x = hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        residual, space = hidden_states, x.shape[2:] if x.ndim == 4 else None
        if space is not None:
            x = x.flatten(2).mT
        context = encoder_hidden_states
        mask = attention_mask
        if mask is not None:
            batch, keys = (x if context is None else context).shape[:2]
            mask = attn.prepare_attention_mask(mask, keys, batch)
            mask = mask.view(batch, attn.heads, -1, mask.shape[-1])
        x = _grouped(attn, x)
        if context is None:
            context = x
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = (_heads(t, attn.heads) for t in self.projected(attn, x, context))
        q, k = _normed(attn.norm_q, q), _normed(attn.norm_k, k)
        y = _out(attn, _merged(hk.attention(q, k, v, mask=mask)))
        if space is not None:
            y = y.mT.unflatten(2, space)
        if attn.residual_connection:
            y = y + residual
        return y if attn.rescale_output_factor == 1 else y / attn.rescale_output_factor


class AddedProcessor:
    """What `AttnAddedKVProcessor2_0` computes: pixels (B, C, H, W) see the text before themselves."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **ignored: Any,
    ) -> Tensor:
        x = hidden_states.flatten(2).mT
        batch, rows = x.shape[:2]
        mask = attn.prepare_attention_mask(attention_mask, rows, batch, out_dim=4)
        context = encoder_hidden_states
        if context is None:
            context = x
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        x = _grouped(attn, x)
        q = _heads(attn.to_q(x), attn.heads)
        k, v = _heads(attn.add_k_proj(context), attn.heads), _heads(attn.add_v_proj(context), attn.heads)
        if not attn.only_cross_attention:
            k = torch.cat((k, _heads(attn.to_k(x), attn.heads)), dim=2)
            v = torch.cat((v, _heads(attn.to_v(x), attn.heads)), dim=2)
        y = _out(attn, _merged(hk.attention(q, k, v, mask=mask)))
        return y.mT.reshape(hidden_states.shape) + hidden_states


class JointProcessor:
    """What `JointAttnProcessor2_0` computes: image and text tokens attend to both, through their own projections."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **ignored: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        # The host takes a mask here and drops it.
        x, text = hidden_states, encoder_hidden_states
        q = _normed(attn.norm_q, _heads(attn.to_q(x), attn.heads))
        k = _normed(attn.norm_k, _heads(attn.to_k(x), attn.heads))
        v = _heads(attn.to_v(x), attn.heads)
        if text is None:
            return _out(attn, _merged(hk.attention(q, k, v)))
        q = torch.cat((q, _normed(attn.norm_added_q, _heads(attn.add_q_proj(text), attn.heads))), dim=2)
        k = torch.cat((k, _normed(attn.norm_added_k, _heads(attn.add_k_proj(text), attn.heads))), dim=2)
        v = torch.cat((v, _heads(attn.add_v_proj(text), attn.heads)), dim=2)
        image, text = _merged(hk.attention(q, k, v)).split((x.shape[1], text.shape[1]), dim=1)
        return _out(attn, image), text if attn.context_pre_only else attn.to_add_out(text)


PROCESSORS = {
    "AttnProcessor": Processor,
    "AttnProcessor2_0": Processor,
    "AttnAddedKVProcessor": AddedProcessor,
    "AttnAddedKVProcessor2_0": AddedProcessor,
    "JointAttnProcessor2_0": JointProcessor,
}

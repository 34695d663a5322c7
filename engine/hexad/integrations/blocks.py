"""Whole blocks of known transformers models in as few kernel calls as they take.

A decoder's block is norm, one product for q, k and v, rotation, cache, attention, product with residual, norm and
feed-forward with residual; a BERT's self-attention is one product and attention. The parts stay modules of their own:
where a block must not be taken whole (compiled, hooked inside, another attention chosen), the host's forward calls them
one by one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.output_capturing import _active_collector

import hexad_kernels as hk
from hexad.integrations import growing_cache, layers
from hexad.integrations.layers import State, host_serves, own, product
from hexad.integrations.transformers import NAME, attend


def _attention_of(config: Any) -> str | None:
    """The attention that a model's config names; the host's own property takes 3 us, once a block."""
    found = object.__getattribute__(config, "__dict__").get("_attn_implementation_internal")
    return found if isinstance(found, str) else config._attn_implementation


def _whole(block: Any, config: Any, x: Tensor, weight: Tensor) -> bool:
    """Whether the block may be computed as one."""
    if torch.compiler.is_compiling() or block.training or _attention_of(config) != NAME:
        return False
    if _active_collector.get():  # somebody wants what is inside
        return False
    if torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters()):
        return False
    return not host_serves(x, weight)


def _heads(x: Tensor, first: int, heads: int, dim: int) -> Tensor:
    """Heads `first` to `first + heads` of x (B, S, all heads * D), contiguous, as (B, heads, S, D)."""
    batch, rows, width = x.shape
    return x.as_strided((batch, heads, rows, dim), (rows * width, dim, width, 1), x.storage_offset() + first * dim)


def _thirds(x: Tensor, heads: int, dim: int) -> Sequence[Tensor]:
    """The same of x (B, S, 3 * heads * D), a third of the heads each."""
    batch, rows, width = x.shape
    return x.as_strided((3, batch, heads, rows, dim), (heads * dim, rows * width, dim, width, 1)).unbind()


def _attended(module: Any, q: Tensor, k: Tensor, v: Tensor, cache: Any, mask: Tensor | None, asked: Any) -> Tensor:
    """Attention of new rows over a cache that they join -> (B, S, Hq * D)."""
    if cache is not None:
        grown = growing_cache.append(cache, module.layer_idx, k, v)
        if grown is None:
            k, v = cache.update(k, v, module.layer_idx)
        else:
            room, total = grown
            batch, heads, rows, dim = q.shape
            if rows == 1 and mask is None:
                lengths = growing_cache.counts(batch, total)
                out = hk.decode(q.select(2, 0), room.k, room.v, lengths, scale=module.scaling)
                return out.view(batch, 1, heads * dim)
            k, v = room.keys, room.values
    return attend(module, q, k, v, mask, scaling=module.scaling, **asked)[0].flatten(2)


def _feed(mlp: Any, x: Tensor, residual: Tensor) -> Tensor:
    state = getattr(mlp, "_hexad", None)
    if isinstance(state, State) and state.forward in (layers.feed_forward, layers.gated_feed_forward):
        return state.forward(mlp, x, residual)
    return mlp(x) + residual


def gpt2(
    self: Any,
    hidden_states: Tensor,
    past_key_values: Any = None,
    attention_mask: Tensor | None = None,
    encoder_hidden_states: Tensor | None = None,
    encoder_attention_mask: Tensor | None = None,
    use_cache: bool | None = False,
    **asked: Any,
) -> Tensor:
    """GPT2Block's forward."""
    parts, x = self._modules, hidden_states
    module = parts["attn"]
    inner = module._modules
    if encoder_hidden_states is not None or not _whole(self, module.config, x, own(inner["c_attn"], "weight")):
        return type(self).forward(
            self, x, past_key_values, attention_mask, encoder_hidden_states, encoder_attention_mask, use_cache, **asked
        )
    q, k, v = _thirds(product(inner["c_attn"], parts["ln_1"].forward(x)), module.num_heads, module.head_dim)
    x = product(inner["c_proj"], _attended(module, q, k, v, past_key_values, attention_mask, asked), x)
    return _feed(parts["mlp"], parts["ln_2"].forward(x), x)


class _Tables:
    """The halves of a host's rotation tables as rope takes them: all layers of a step are given the same tensors."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        batch, rows, dim = cos.shape
        self.of = weakref.ref(cos), weakref.ref(sin)
        self.cos, self.sin = (t[..., : dim // 2].reshape(-1, dim // 2) for t in (cos, sin))
        # The rows of every sequence one after the other.
        self.starts = torch.arange(0, batch * rows, rows, dtype=torch.int32) if batch > 1 else None
        # Views: what somebody writes to the tensors is seen.
        self.lasting = self.cos.data_ptr() == cos.data_ptr() and self.sin.data_ptr() == sin.data_ptr()


_tables: _Tables | None = None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, S, D) by the host's tables (B or 1, S, D), whose halves are alike."""
    global _tables
    tables = _tables
    if tables is None or tables.of[0]() is not cos or tables.of[1]() is not sin:
        tables = _Tables(cos, sin)
        _tables = tables if tables.lasting else None
    return hk.rope(x, tables.cos, tables.sin, positions=tables.starts)


def llama(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **asked: Any,
) -> Tensor:
    """The forward of a decoder layer with RMS norms and rotary positions."""
    parts, x = self._modules, hidden_states
    module = parts["self_attn"]
    inner = module._modules
    if position_embeddings is None or not _whole(self, module.config, x, own(inner["q_proj"], "weight")):
        return type(self).forward(
            self, x, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            use_cache=use_cache, position_embeddings=position_embeddings, **asked,
        )  # fmt: skip
    dim = module.head_dim
    projections = [inner[name] for name in PROJECTIONS]
    heads, groups = [own(p, "weight").shape[0] // dim for p in projections[:2]]
    qkv = layers.joined(self._hexad, parts["input_layernorm"].forward(x), *projections)
    both = _rotated(_heads(qkv, 0, heads + groups, dim), *position_embeddings)
    q, k, v = both.narrow(1, 0, heads), both.narrow(1, heads, groups), _heads(qkv, heads + groups, groups, dim)
    x = product(inner["o_proj"], _attended(module, q, k, v, past_key_values, attention_mask, asked), x)
    return _feed(parts["mlp"], parts["post_attention_layernorm"].forward(x), x)


def bert(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **asked: Any
) -> tuple[Tensor, None]:
    """BertSelfAttention's forward."""
    x = hidden_states
    if past_key_values is not None or not _whole(self, self.config, x, self.query.weight):
        return type(self).forward(self, x, attention_mask, past_key_values, **asked)
    heads, dim = self.num_attention_heads, self.attention_head_size
    qkv = layers.joined(self._hexad, x, self.query, self.key, self.value)
    q, k, v = _thirds(qkv, heads, dim)
    out, _ = attend(self, q, k, v, attention_mask, scaling=self.scaling, **asked)
    return out.flatten(2), None


PROJECTIONS = ("q_proj", "k_proj", "v_proj")
LLAMA = ("input_layernorm", "self_attn.o_proj", "post_attention_layernorm", *(f"self_attn.{p}" for p in PROJECTIONS))
# Class -> what it becomes, its forward, the parts that must be hexad's, and those that become one product.
KNOWN: dict[str, tuple[str, Callable[..., Any], tuple[str, ...], tuple[str, ...]]] = {
    "GPT2Block": ("decoder block", gpt2, ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2"), ()),
    "BertSelfAttention": ("self-attention", bert, ("query", "key", "value"), ("query", "key", "value")),
    **dict.fromkeys(
        ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"),
        ("decoder block", llama, LLAMA, tuple(f"self_attn.{p}" for p in PROJECTIONS)),
    ),
}


def match_block(block: Any, hooked: Callable[[nn.Module], bool]) -> tuple[State, list[Any]] | None:
    """What computes `block` as one, and the linear layers in it that become one product."""
    kind = type(block)
    if kind.__name__ not in KNOWN or not kind.__module__.startswith("transformers.models."):
        return None
    what, forward, needed, joined = KNOWN[kind.__name__]
    if any(hooked(part) for part in block.modules() if part is not block):
        return None
    if not all(hasattr(block.get_submodule(name), "_hexad") for name in needed) or hasattr(block, "crossattention"):
        return None
    return State(what, forward), [block.get_submodule(name) for name in joined]

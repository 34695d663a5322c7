"""SGLang's attention backend on hexad's kernels."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from torch import Tensor

from hexad.integrations import paged
from hexad.integrations.sglang import Unsupported


class HexadAttnBackend(AttentionBackend):
    """Causal attention of one model; no CUDA graphs, no speculation. Raises Unsupported before computing."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self.device = runner.device

    def init_forward_metadata(self, forward_batch: Any) -> None:
        batch = forward_batch
        if getattr(batch, "spec_info", None) is not None:
            raise Unsupported("spec_info: hexad's backend does not speculate")
        decoding = batch.forward_mode.is_decode()
        counts = torch.ones_like(batch.seq_lens) if decoding else batch.extend_seq_lens
        self.starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
        self.lengths = batch.seq_lens.int()
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        self.block_table = batch.req_to_token_pool.req_to_token[batch.req_pool_indices, :longest].int()

    def support_triton(self) -> bool:
        return False

    def forward_decode(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **asked: Any
    ) -> Tensor:
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, asked)

    def forward_extend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **asked: Any
    ) -> Tensor:
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, asked)

    def _forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: Any, batch: Any, save: bool, asked: dict[str, Any]
    ) -> Tensor:
        """q (tokens, heads * D) -> (tokens, heads * Dv)."""
        sinks = asked.pop("sinks", None)
        wanted = [name for name, value in asked.items() if value is not None]
        kind = getattr(layer.attn_type, "value", layer.attn_type)
        if layer.is_cross_attention or kind != "decoder":
            raise Unsupported(
                f"attn_type: got {kind}{' across' if layer.is_cross_attention else ''}, wants a decoder's"
            )
        if wanted:
            raise Unsupported(f"{', '.join(wanted)}: hexad's backend does not take that")
        if q.is_cuda and sinks is not None:
            raise Unsupported("sinks: hexad's GPU kernels have none")
        if layer.logit_cap and getattr(layer, "logit_capping_method", "tanh") != "tanh":
            raise Unsupported(f"logit_capping_method: got {layer.logit_capping_method}, wants tanh")
        if getattr(layer, "xai_temperature_len", -1) > 0:
            raise Unsupported("xai_temperature_len: hexad's attention has no such temperature")
        if save and k is not None:
            batch.token_to_kv_pool.set_kv_buffer(layer, batch.out_cache_loc, k, v)
        keys = batch.token_to_kv_pool.get_key_buffer(layer.layer_id).unsqueeze(2)
        values = batch.token_to_kv_pool.get_value_buffer(layer.layer_id).unsqueeze(2)
        if keys.dtype != q.dtype:
            raise Unsupported(f"kv cache: got {keys.dtype}, wants the queries' {q.dtype}")
        out = paged.attend(
            q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim), keys, values, self.starts, self.lengths,
            self.block_table, window=(layer.sliding_window_size, 0) if layer.sliding_window_size > 0 else None,
            softcap=layer.logit_cap, scale=layer.scaling, sinks=sinks,
        )  # fmt: skip
        return out.flatten(1)

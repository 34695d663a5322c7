"""vLLM's attention backend on hexad's kernels; vLLM imports this module by its name once the backend is picked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionMetadataBuilder, AttentionType

from hexad.integrations import paged


class Unsupported(NotImplementedError):
    """vLLM asks for something that hexad's attention does not do; nothing was computed."""


class HexadAttentionBackend(AttentionBackend):
    """Decoder attention over a cache (2, blocks, kv heads, block size, head size) of float32, bfloat16 or float16."""

    accept_output_buffer: bool = True
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = ["auto", "bfloat16"]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[HexadAttentionImpl]:
        return HexadAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[HexadMetadataBuilder]:
        return HexadMetadataBuilder

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int, block_size: int, num_kv_heads: int, head_size: int, cache_dtype_str: str = "auto"
    ) -> tuple[int, ...]:
        return 2, num_blocks, num_kv_heads, block_size, head_size

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size <= 256

    @classmethod
    def supports_sink(cls) -> bool:
        return not torch.cuda.is_available()  # the CPU's kernels have sinks, the GPU's have none


@dataclass
class HexadMetadata:
    starts: Tensor
    lengths: Tensor
    block_table: Tensor
    slots: Tensor
    tokens: int


class HexadMetadataBuilder(AttentionMetadataBuilder):
    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> HexadMetadata:
        common = common_attn_metadata
        if common.causal is not True:
            raise Unsupported("causal: hexad's backend has causal attention only")
        tokens = common.num_actual_tokens
        return HexadMetadata(
            common.query_start_loc, common.seq_lens, common.block_table_tensor, common.slot_mapping[:tokens], tokens
        )


class HexadAttentionImpl(AttentionImpl):
    """One layer. Raises Unsupported before anything is computed."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        if attn_type != AttentionType.DECODER:
            raise Unsupported(f"attn_type: got {attn_type}, hexad's backend serves decoders")
        if kv_cache_dtype not in ("auto", "bfloat16"):
            raise Unsupported(f"kv_cache_dtype: got {kv_cache_dtype}, wants the model's own")
        if torch.cuda.is_available() and (sinks is not None or alibi_slopes is not None):
            raise Unsupported("sinks, alibi_slopes: hexad's GPU kernels have neither")
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype
        self.writes = kv_sharing_target_layer_name is None
        self.options: dict[str, Any] = {
            "window": None if sliding_window is None else (sliding_window - 1, 0),
            "softcap": logits_soft_cap,
            "scale": self.scale,
            "alibi_slopes": None if alibi_slopes is None else torch.tensor(alibi_slopes, dtype=torch.float32),
            "sinks": sinks,
        }

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: HexadMetadata | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """query (tokens, heads, head size), key and value (tokens, kv heads, head size) -> output, written."""
        if output_scale is not None or output_block_scale is not None:
            raise Unsupported("output_scale: hexad's backend does not quantise its output")
        if attn_metadata is None:  # vLLM measures its memory
            return output
        m = attn_metadata
        k_cache, v_cache = kv_cache.unbind(0)
        if self.writes and key is not None:
            paged.write(key[: m.tokens], value[: m.tokens], k_cache, v_cache, m.slots)
        out = paged.attend(query[: m.tokens], k_cache, v_cache, m.starts, m.lengths, m.block_table, **self.options)
        output[: m.tokens].copy_(out.view_as(output[: m.tokens]))
        return output

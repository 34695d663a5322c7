"""Tiny models of transformers with random weights, one for each shape of attention that the integration serves."""

import copy

import torch
import transformers

VOCABULARY = 99
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 16, "max_position_embeddings": 128}
PLAIN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def causal_models():
    t = transformers
    yield (
        "gpt2",
        t.GPT2LMHeadModel,
        t.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, **PLAIN),
    )
    yield "llama", t.LlamaForCausalLM, t.LlamaConfig(**GATED, **PLAIN)
    yield "qwen3", t.Qwen3ForCausalLM, t.Qwen3Config(**GATED, **PLAIN)
    yield "mistral", t.MistralForCausalLM, t.MistralConfig(**GATED, **PLAIN, sliding_window=5)
    yield (
        "gemma2",
        t.Gemma2ForCausalLM,
        t.Gemma2Config(**GATED, **PLAIN, sliding_window=5, attn_logit_softcapping=2.0, query_pre_attn_scalar=16),
    )


def encoder_decoders():
    t = transformers
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
    dims = {"d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    yield "t5", t.T5ForConditionalGeneration, t.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    yield "bart", t.BartForConditionalGeneration, t.BartConfig(
        vocab_size=VOCABULARY, **dims, **heads, max_position_embeddings=128, decoder_start_token_id=1,
        forced_eos_token_id=None, **PLAIN,
    )  # fmt: skip
    yield "whisper", t.WhisperForConditionalGeneration, t.WhisperConfig(
        vocab_size=VOCABULARY, **dims, **heads, num_mel_bins=8, max_source_positions=20, max_target_positions=64,
        decoder_start_token_id=1, **PLAIN, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip


def build(model_class, config):
    """A model in float32 whose layers matter: initialised wide enough that a wrong mask shows."""
    torch.manual_seed(0)
    model = model_class(copy.deepcopy(config)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.12)
    return model


def inputs_of(name, padded=None):
    torch.manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (2, 9))
    attention_mask = torch.ones_like(ids)
    if padded == "left":
        attention_mask[1, :4] = 0
    elif padded == "right":
        attention_mask[1, -4:] = 0
    if name == "whisper":
        given = {"input_features": torch.randn(2, 8, 40)}
    else:
        given = {"input_ids": ids.where(attention_mask.bool(), 0)}
        if padded:
            given["attention_mask"] = attention_mask
    return given


def host_for(name):
    return "eager" if name in ("gemma2", "gpt_oss") else "sdpa"  # sdpa has neither soft-cap nor sinks


CAUSAL = {name: (kind, config) for name, kind, config in causal_models()}
PAIRED = {name: (kind, config) for name, kind, config in encoder_decoders()}


def gpt_oss():
    t = transformers
    config = t.GptOssConfig(
        **GATED, **PLAIN, num_local_experts=2, num_experts_per_tok=1, sliding_window=5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    return build(t.GptOssForCausalLM, config)

"""llama.cpp (llama-cpp-python): a GPT written as GGUF, in float32, bfloat16, Q8_0 or Q4_0, decoded greedily."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

KINDS = {"float32": Kind.F32, "bfloat16": Kind.BF16, "int8": Kind.Q8_0, "int4": Kind.Q4_0}
FTYPES = {"float32": 0, "bfloat16": 32, "int8": 7, "int4": 2}


def _write(path, model, form):
    config = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(4 * config.width)
    writer.add_head_count(config.heads)
    writer.add_layer_norm_eps(config.eps)
    writer.add_file_type(FTYPES[form])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{token}" for token in range(config.vocab)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(config.vocab - 1)
    writer.add_eos_token_id(config.vocab - 1)

    def put(name, tensor):
        values, kind = tensor.float().numpy(), KINDS[form] if tensor.ndim == 2 else Kind.F32
        if name == "position_embd.weight":
            kind = Kind.F32
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)

    def both(name, layer):
        put(f"{name}.weight", layer.weight)
        put(f"{name}.bias", layer.bias)

    put("token_embd.weight", model.embedding.weight)
    put("output.weight", model.embedding.weight)
    put("position_embd.weight", model.position.weight)
    both("output_norm", model.norm)
    names = {"norm1": "attn_norm", "qkv": "attn_qkv", "project": "attn_output", "norm2": "ffn_norm", "up": "ffn_up",
             "down": "ffn_down"}  # fmt: skip
    for i, block in enumerate(model.blocks):
        for ours, theirs in names.items():
            both(f"blk.{i}.{theirs}", getattr(block, ours))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _load(model, form):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        _write(path, model, form)
        return llama_cpp.Llama(
            str(path), n_ctx=model.config.context, n_threads=torch.get_num_threads(), n_batch=512,
            n_threads_batch=torch.get_num_threads(), use_mmap=False, logits_all=False, verbose=False,
        )  # fmt: skip


def greedy(model, form):
    """(prompts, length) -> the next tokens of one prompt, with the model's weights in `form`; one stream only."""
    if form not in KINDS:
        return None
    llama = _load(model, form)

    def run(prompts, length):
        if len(prompts) != 1:
            raise ValueError(f"prompts: got {len(prompts)}, this peer decodes one stream")
        llama.reset()
        made, fed = [], list(prompts[0])
        for _ in range(length):
            llama.eval(fed)
            fed = [int(llama.sample(temp=0.0))]
            made += fed
        return [made]

    return run

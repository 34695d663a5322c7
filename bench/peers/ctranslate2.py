"""CTranslate2: a GPT as its TransformerDecoderModelSpec, decoded greedily."""

from __future__ import annotations

import tempfile

import ctranslate2
import torch
from ctranslate2.specs import common_spec
from ctranslate2.specs.transformer_spec import TransformerDecoderModelSpec

COMPUTE = {"float32": "float32", "int8": "int8_float32"}  # bfloat16: refused on CPUs


def _linear(spec, layer):
    spec.weight, spec.bias = layer.weight.numpy(), layer.bias.numpy()


def _norm(spec, layer):
    spec.gamma, spec.beta = layer.weight.numpy(), layer.bias.numpy()


def _spec(model):
    config = model.config
    spec = TransformerDecoderModelSpec.from_config(
        config.layers, config.heads, pre_norm=True, activation=common_spec.Activation.GELUTanh
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = model.embedding.weight.numpy()
    decoder.position_encodings.encodings = model.position.weight.numpy()
    decoder.projection.weight = model.embedding.weight.numpy()
    _norm(decoder.layer_norm, model.norm)
    for to, block in zip(decoder.layer, model.blocks):
        _norm(to.self_attention.layer_norm, block.norm1)
        _linear(to.self_attention.linear[0], block.qkv)
        _linear(to.self_attention.linear[1], block.project)
        _norm(to.ffn.layer_norm, block.norm2)
        _linear(to.ffn.linear_0, block.up)
        _linear(to.ffn.linear_1, block.down)
    spec.register_vocabulary([str(token) for token in range(config.vocab)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(config.vocab - 1)
    return spec


def greedy(model, form):
    """(prompts, length) -> each prompt's next tokens, with the model's weights in `form`; None for other forms."""
    if form not in COMPUTE:
        return None
    with tempfile.TemporaryDirectory() as folder:
        spec = _spec(model)
        spec.validate()
        spec.optimize(quantization=None if form == "float32" else COMPUTE[form])
        spec.save(folder)
        generator = ctranslate2.Generator(
            folder, compute_type=COMPUTE[form], inter_threads=1, intra_threads=torch.get_num_threads()
        )

    def run(prompts, length):
        made = generator.generate_batch(
            [[str(t) for t in prompt] for prompt in prompts],
            max_length=length, min_length=length, sampling_topk=1, include_prompt_in_result=False, end_token=[],
        )  # fmt: skip
        return [[int(t) for t in r.sequences[0]] for r in made]

    return run

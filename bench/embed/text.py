"""transformers: GPT-2 124M and a Llama of 300M that generate, BERT-base that encodes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import hexad
from bench.embed.row import Row, near, twin, weights

PROMPT, NEW = 32, 32
PLAIN = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}


def generated(model: Any, ids: torch.Tensor, new: int) -> torch.Tensor:
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False
    )


def same_tokens(host: torch.Tensor, ours: torch.Tensor) -> tuple[str, bool]:
    return f"{int((host == ours).all(1).sum())} of {len(host)} the same tokens", torch.equal(host, ours)


def logits_off(exact: torch.Tensor, host: Any, ours: Any, ids: torch.Tensor, bound: float) -> tuple[str, bool]:
    """The error of ours against float32's logits; allowed: `bound` of their size, or 1.2 times the host's own error."""
    off, theirs = (float((m(ids).logits.float() - exact).norm() / exact.norm()) for m in (ours, host))
    allowed = max(bound, 1.2 * theirs)
    return f"logits off {off:.1e} <= {allowed:.1e}", off <= allowed


def language_rows(name: str, model: Any, embeddings: list[Any], cases: list[tuple[Any, ...]]) -> Iterator[Row]:
    """One row per (batch, dtype, weights, new tokens, target)."""
    ids = torch.randint(1, model.config.vocab_size, (8, PROMPT), generator=torch.Generator().manual_seed(0))
    exact = model(ids[:1]).logits
    read = weights(model, *embeddings)
    for batch, dtype, form, new, target in cases:
        host = model if dtype == torch.float32 else twin(model).to(dtype)
        ours = twin(host)
        report = hexad.optimize(ours, weights=form)
        prompt = ids[:batch]

        def check(a: torch.Tensor, b: torch.Tensor, host: Any = host, ours: Any = ours, form: Any = form) -> Any:
            if host.dtype == torch.float32 and form is None:
                return same_tokens(a, b)
            return logits_off(exact, host, ours, ids[:1], 0.05 if form else 0.0)

        size = {"int8": 1, "int4": 0.625}.get(form, dtype.itemsize)
        label = form or str(dtype).removeprefix("torch.")
        yield Row(
            f"{name} generate, batch {batch}, {label}", target, partial(generated, host, prompt, new),
            partial(generated, ours, prompt, new), check, bytes=read * size * new,
            flops=2.0 * read * batch * new, dtype=dtype,
        )  # fmt: skip
        report.undo()


def gpt2_rows() -> Iterator[Row]:
    f, h = torch.float32, torch.bfloat16
    model = GPT2LMHeadModel(GPT2Config(**PLAIN)).eval()
    cases = [
        (1, f, None, NEW, 2.2), (8, f, None, NEW, 2.2), (1, h, None, 8, 3.0), (8, h, None, 8, 3.0),
        (1, f, "int8", NEW, 1.5), (8, f, "int8", NEW, 1.5),
    ]  # fmt: skip
    yield from language_rows("GPT-2 124M", model, [model.transformer.wpe], cases)


def llama_rows() -> Iterator[Row]:
    config = LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=18, num_attention_heads=16,
        num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=False, **PLAIN,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    cases = [(1, torch.float32, None, 16, 1.5), (1, torch.bfloat16, None, 6, 1.5)]
    yield from language_rows("Llama 300M", model, [model.model.embed_tokens], cases)


def bert_rows() -> Iterator[Row]:
    bert = BertModel(BertConfig()).eval()
    ours = twin(bert)
    report = hexad.optimize(ours)
    for batch in (1, 8):
        ids = torch.randint(1, 30000, (batch, 128), generator=torch.Generator().manual_seed(batch))
        read = weights(bert.encoder)
        yield Row(
            f"BERT-base, {batch} x 128", 1.5, lambda ids=ids: bert(ids).last_hidden_state,
            lambda ids=ids: ours(ids).last_hidden_state, near(1e-4), bytes=4.0 * read,
            flops=2.0 * read * batch * 128 + 4.0 * 12 * 768 * batch * 128**2,
        )  # fmt: skip
    report.undo()

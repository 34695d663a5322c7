"""Autoregressive decoding: one token after another, each drawn from the model's distribution given those before.

logits = prefill(prompts)
repeat: token ~ sample(logits);  logits = decode(token)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hexad_kernels import sample

from ..cache import KVCache
from ..errors import InputError
from ..models.gpt import GPT
from ..tokens import pad
from . import Progress


@torch.inference_mode()
def continuations(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    length: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    cache: KVCache | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """``length`` new tokens for each prompt (of tokens). Prompts of any lengths go through together.

    Row i draws with seeds[i] alone, so its tokens depend on no other row. A text that fills the context goes
    on from its last half: those tokens are prefilled anew, and what came before is forgotten. Temperature 0
    takes the likeliest token. ``progress(done, length)`` follows each token. InputError for an empty prompt
    or one beyond the context.
    """
    context = model.config.context
    for prompt in prompts:
        if not 0 < len(prompt) <= context:
            raise InputError("prompt", f"{len(prompt)} tokens", f"1 to {context}")
    cache = model.empty_cache(len(prompts)) if cache is None else cache
    keys = torch.tensor(seeds, dtype=torch.int64)
    texts = [list(prompt) for prompt in prompts]

    logits = model.prefill(*pad(texts), cache)
    for i in range(length):
        tokens = sample(logits, keys, position=i, temperature=temperature, top_k=top_k, top_p=top_p)
        for text, token in zip(texts, tokens.tolist()):
            text.append(token)
        if i + 1 < length:
            logits = _next_logits(model, texts, tokens, cache)
        if progress is not None:
            progress(i + 1, length)
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts)]


def _next_logits(model: GPT, texts: list[list[int]], tokens: Tensor, cache: KVCache) -> Tensor:
    """Decode the rows that have room, and start the full ones again from their last half."""
    full = (cache.lengths >= cache.capacity).tolist()
    if not any(full):
        return model.decode(tokens, cache)
    rows = []
    for i, text in enumerate(texts):
        row = cache.row(i)
        if full[i]:
            row.clear()
            rows.append(model.prefill(*pad([text[-(cache.capacity // 2) :]]), row))
        else:
            rows.append(model.decode(tokens[i : i + 1], row))
    return torch.cat(rows)

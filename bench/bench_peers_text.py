"""GPT-2 124M, greedy, in other engines: tokens checked against float32's logits, then both timed in turns."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import hexad
from bench import peers
from bench.timing import interleaved
from hexad.models.gpt import GPT, Config, from_upstream

NAMES = ("ctranslate2", "llama_cpp")
LOADED = {name: peers.load(name) for name in NAMES}
PROMPT, NEW = 32, 32
# How far below float32's best logit a greedy token of that form may be, in standard deviations of the logits.
FORMS = {"float32": 1e-3, "bfloat16": 0.3, "int8": 0.3, "int4": 2.0}


@pytest.fixture(scope="module")
def upstream() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=None, pad_token_id=0)).eval().requires_grad_(False)
    for p in model.parameters():  # logits further apart than a fresh model's
        if p.ndim == 2:
            p.mul_(2)
    return model


@pytest.fixture(scope="module")
def gpt(upstream) -> GPT:
    """The same weights in hexad's own module, which the peers' files read."""
    model = GPT(Config(vocab=50257, context=1024, width=768, layers=12, heads=12, rotary=False))
    model.load_state_dict(from_upstream(upstream.state_dict()), strict=False)
    return model.eval().requires_grad_(False)


def gap(model: GPT2LMHeadModel, prompts: list[list[int]], made: list[list[int]]) -> float:
    """How far a text's tokens are from float32's choice after the same text, at worst."""
    texts = torch.tensor([p + m for p, m in zip(prompts, made)])
    logits = model(texts).logits[:, PROMPT - 1 : -1]
    chosen = logits.gather(2, texts[:, PROMPT:, None]).squeeze(2)
    return float(((logits.amax(2) - chosen) / logits.std(2)).max())


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_gpt2(benchmark, upstream, gpt, name, form, batch):
    peer, why = LOADED[name]
    if peer is None:
        pytest.skip(why)
    if name == "llama_cpp" and batch > 1:
        pytest.skip("one stream")
    theirs = peer.greedy(gpt, form)
    if theirs is None:
        pytest.skip(f"{name} has no {form} on the CPU")
    prompts = torch.randint(1, 50257, (batch, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    ids = torch.tensor(prompts)
    host = copy.deepcopy(upstream).to(torch.bfloat16) if form == "bfloat16" else upstream
    report = hexad.optimize(host, weights=form if form.startswith("int") else None)

    def ours():
        made = host.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )
        return made[:, PROMPT:].tolist()

    try:
        tokens = ours(), theirs(prompts, NEW)
        mine, other = interleaved([ours, lambda: theirs(prompts, NEW)], seconds=8.0, rounds=5)
    finally:
        report.undo()
    gaps = [gap(upstream, prompts, found) for found in tokens]
    # How well the other engine quantises is its own affair, and goes into the report.
    assert max(gaps if form == "float32" else gaps[:1]) <= FORMS[form], f"hexad {gaps[0]}, {name} {gaps[1]}"
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(
        op="gpt2", case=f"batch_{batch}", dtype=form, peer=name, seconds=mine, vs_peer=other / mine,
        tokens_per_second=batch * NEW / mine, peer_tokens_per_second=batch * NEW / other,
        gap=gaps[0], peer_gap=gaps[1],
    )  # fmt: skip

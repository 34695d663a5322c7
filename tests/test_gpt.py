"""GPT: same numbers as Hugging Face's GPT-2, same bits with and without a cache, texts that depend on their seed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hexad import checkpoint, registry
from hexad.cache import KVCache, PagedKVCache
from hexad.errors import CheckpointError, InputError
from hexad.models.gpt import GPT, Config, from_upstream
from hexad.ngram import witten_bell_bits
from hexad.sampling.decode import continuations
from hexad.tasks import gpt as task
from hexad.tokens import Vocabulary, learn_merges, pad
from hexad.training.loop import Recipe, run

SMALL = Config(vocab=300, context=32, width=24, layers=2, heads=3)
LEARNED = Config(vocab=300, context=32, width=24, layers=2, heads=3, rotary=False)
TEXT = "The while statement is used for repeated execution as long as an expression is true.\n" * 4


def small(config: Config = SMALL, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2).add_(torch.randn_like(p), alpha=0.05)
    return model.eval().requires_grad_(False)


def caches(model: GPT, batch: int) -> list[KVCache]:
    c = model.config
    return [
        model.empty_cache(batch),
        PagedKVCache(c.layers, batch, c.heads, c.context, c.width // c.heads, page=5),
    ]


@pytest.mark.parametrize("config", [SMALL, LEARNED])
def test_cached_logits_are_the_uncached_ones(config: Config) -> None:
    model = small(config)
    tokens = torch.randint(300, (3, 24), generator=torch.Generator().manual_seed(1))
    whole = model(tokens)
    lengths = torch.tensor([4, 9, 1], dtype=torch.int32)
    rows = torch.arange(3)
    for cache in caches(model, 3):
        logits = model.prefill(tokens[:, :9], lengths, cache)
        assert torch.equal(logits, whole[rows, lengths.long() - 1])
        for step in range(12):
            at = lengths.long() + step
            assert torch.equal(model.decode(tokens[rows, at], cache), whole[rows, at]), f"step {step}"


def test_a_wrong_position_would_be_noticed() -> None:
    """The inverse of the test above: one cache length off by one, and the logits differ."""
    for config in (SMALL, LEARNED):
        model = small(config)
        tokens = torch.randint(300, (1, 9), generator=torch.Generator().manual_seed(1))
        cache = model.empty_cache(1)
        model.prefill(tokens[:, :8], torch.tensor([7], dtype=torch.int32), cache)
        assert not torch.equal(model.decode(tokens[:, 8], cache), model(tokens)[:, 8])


def test_a_text_does_not_depend_on_its_neighbours() -> None:
    model = small()
    prompts, options = [[1, 2, 3], [4] * 10, [5]], {"length": 50, "temperature": 0.9, "top_p": 0.9}
    together = continuations(model, prompts, seeds=[7, 8, 9], **options)
    for prompt, seed, text in zip(prompts, (7, 8, 9), together):
        assert continuations(model, [prompt], seeds=[seed], **options) == [text]
    paged = PagedKVCache(2, 3, 3, 32, 8, page=4)
    assert continuations(model, prompts, seeds=[7, 8, 9], cache=paged, **options) == together


def test_past_the_context_it_goes_on_from_the_last_half() -> None:
    model = small()
    (tokens,) = continuations(model, [[1] * 30], seeds=[0], length=4, temperature=0)
    text = [1] * 30 + tokens
    assert tokens[2] == int(model(torch.tensor([text[:32]]))[0, -1].argmax())
    assert tokens[3] == int(model(torch.tensor([text[17:33]]))[0, -1].argmax())


def test_it_matches_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
    upstream = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.3)
    ).eval()
    model = small(LEARNED)
    checkpoint.fill(model, from_upstream(upstream.state_dict()) | {"merges": model.merges})
    tokens = torch.randint(300, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), upstream(tokens).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="surprise"):
        from_upstream({"surprise": torch.zeros(1)})


def test_training_learns_resumes_and_ships_its_vocabulary(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(task.data, "topics", lambda: task.data.Text(TEXT * 4, TEXT))
    recipe = Recipe(steps=30, batch=4, lr=1e-2, warmup=5, ema=0.5)

    def fresh() -> GPT:
        torch.manual_seed(0)
        return GPT(SMALL)

    losses: list[float] = []
    weights = run(task.trainer(fresh(), recipe), recipe, progress=lambda _, f: losses.append(f["loss"]))
    assert losses[-1] < losses[0] / 2

    def interrupt(done: int, _: object) -> None:
        if done == 11:
            raise RuntimeError

    monkeypatch.setattr("hexad.training.loop.SAVE_EVERY", 0.0)
    path = tmp_path / "gpt.resume.safetensors"
    with pytest.raises(RuntimeError):
        run(task.trainer(fresh(), recipe), recipe, resume_path=path, progress=interrupt)
    again = run(task.trainer(fresh(), recipe), recipe, resume_path=path)
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)

    model = GPT(SMALL)
    checkpoint.fill(model, weights)
    model.eval()
    assert len(model.vocabulary) == 300
    bits = task.bits_per_character(model, TEXT, TEXT)
    assert bits < witten_bell_bits(TEXT[:40], TEXT, 3)[3]


def test_bits_per_character_counts_every_token_once() -> None:
    """A model with equal logits needs log2(vocab) bits per token, whatever the windows."""
    model = small()
    model.merges.copy_(learn_merges(TEXT, 300))
    model.embedding.weight.zero_()
    for text in (TEXT, TEXT[:50], "x"):
        expected = len(model.vocabulary.encode(text)) * math.log2(300) / len(text)
        assert task.bits_per_character(model, TEXT, text) == pytest.approx(expected, rel=1e-6)


def test_witten_bell_by_hand() -> None:
    bits = witten_bell_bits("aab", "ab", 2)
    # Order 1: counts a 2, b 1, two kinds, alphabet of 2.
    a, b = (2 + 2 / 2) / 5, (1 + 2 / 2) / 5
    assert bits[1] == pytest.approx(-(math.log2(a) + math.log2(b)) / 2)
    # Order 2: nothing seen after "b" backs off; after "a" an a and a b.
    assert bits[2] == pytest.approx(-(math.log2(a) + math.log2((1 + 2 * b) / 4)) / 2)


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=60)
def test_any_text_survives_the_vocabulary(text: str) -> None:
    vocabulary = Vocabulary(learn_merges(TEXT, 300))
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_vocabulary_errors() -> None:
    with pytest.raises(ValueError, match="vocab_size: got 200"):
        learn_merges(TEXT, 200)
    with pytest.raises(ValueError, match="merges for"):
        learn_merges("ab", 1000)
    with pytest.raises(ValueError, match="not defined yet"):
        Vocabulary(torch.tensor([[300, 1]], dtype=torch.int32))
    assert Vocabulary(learn_merges("a---a----", 259)).encode("----") == [258]
    assert pad([[1, 2], []])[0].tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ""}, "prompt: got '', wants some text"),
        ({"prompt": "x y " * 400}, "prompt: got .* tokens, wants 1 to"),
        ({"n": 0}, "n: got 0"),
        ({"length": 0}, "length: got 0"),
        ({"temperature": -1.0}, "temperature: got -1"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"top_k": -1}, "top_k: got -1"),
        ({"top_p": 0.0}, "top_p: got 0"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    model = small()
    model.merges.copy_(learn_merges(TEXT, 300))
    with pytest.raises(InputError, match=message):
        task.generate(model, **{"n": 1, "seed": 0, **options})


def test_shipped_model_continues_a_prompt() -> None:
    model = registry.load("gpt")
    prompt = 'The "return" statement'
    texts = task.generate(model, n=3, seed=5, prompt=prompt, length=12)
    assert all(text.startswith(prompt) for text in texts)
    assert task.generate(model, n=1, seed=6, prompt=prompt, length=12) == texts[1:2]
    assert len(set(texts)) > 1

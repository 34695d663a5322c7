"""BERT: same numbers as Hugging Face's, padding that does not matter, blanks filled with words."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hexad import checkpoint, registry
from hexad.errors import InputError
from hexad.models.bert import BERT, KEYS, Config, normalise
from hexad.sampling.infill import fill, mask_predict, read_blanks
from hexad.tasks import bert as task
from hexad.tokens import learn_merges
from hexad.training.loop import Recipe, run
from hexad.training.masked import hide

SMALL = Config(vocab=321, context=32, width=24, heads=3, windows=(2, 0))
TEXT = (
    'The "while" statement is used for repeated execution as long as an expression is true.\n'
    'The "import" statement finds a module, and binds a name in the local scope.\n'
) * 4


def small(config: Config = SMALL) -> BERT:
    torch.manual_seed(0)
    model = BERT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2).add_(torch.randn_like(p), alpha=0.05)
        model.merges.copy_(learn_merges(normalise(TEXT), config.vocab - 1))
    return model.eval().requires_grad_(False)


def test_it_matches_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    upstream = transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=321,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
            max_position_embeddings=32,
            initializer_range=0.3,
        )
    ).eval()
    model = small(Config(vocab=321, context=32, width=24, heads=3, segments=2, rotary=False, windows=(0, 0)))
    checkpoint.fill(model, checkpoint.rename(upstream.state_dict(), KEYS) | {"merges": model.merges})
    tokens = torch.randint(321, (2, 20))
    lengths = torch.tensor([20, 13])
    seen = torch.arange(20) < lengths[:, None]
    expected = upstream(tokens, attention_mask=seen.long()).logits.detach()
    torch.testing.assert_close(model(tokens, lengths)[seen], expected[seen], rtol=1e-4, atol=1e-4)


def test_padding_and_neighbours_leave_the_bits_alone() -> None:
    model = small()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(320, (3, 30), generator=generator)
    lengths = torch.tensor([30, 7, 12])
    together = model(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(together[row, :length], model(tokens[row : row + 1, :length])[0])
    tokens[1, 7:] = 5
    assert torch.equal(model(tokens, lengths)[1, :7], together[1, :7])
    assert not torch.equal(model(tokens)[1, :7], together[1, :7]), "padding would have been noticed"


def test_rows_asked_for_are_rows_of_all() -> None:
    model = small()
    tokens = torch.randint(320, (2, 9), generator=torch.Generator().manual_seed(0))
    at = torch.zeros(2, 9, dtype=torch.bool)
    at[0, 3] = at[1, 8] = at[1, 0] = True
    assert torch.equal(model(tokens, at=at), model(tokens)[at])


def test_hiding_follows_the_paper() -> None:
    tokens = torch.arange(320).repeat(200, 1)
    lengths = torch.full((200,), 300)
    seen, chosen = hide(tokens, lengths, 320, torch.Generator().manual_seed(0))
    assert not chosen[:, 300:].any()
    assert torch.equal(seen[~chosen], tokens[~chosen])
    count = int(chosen.sum())
    assert count / (200 * 300) == pytest.approx(0.15, abs=0.005)
    assert float((seen[chosen] == 320).float().mean()) == pytest.approx(0.8, abs=0.02)
    assert float((seen[chosen] == tokens[chosen]).float().mean()) == pytest.approx(0.1, abs=0.015)
    assert int(seen.max()) == 320
    again, _ = hide(tokens, lengths, 320, torch.Generator().manual_seed(0))
    assert torch.equal(seen, again)


def test_training_learns_to_fill(monkeypatch) -> None:
    monkeypatch.setattr(task.data, "topics", lambda: task.data.Text(TEXT, TEXT))
    recipe = Recipe(steps=200, batch=16, lr=6e-3, warmup=20, ema=0.9)
    torch.manual_seed(0)
    model = BERT(SMALL)
    weights = run(task.trainer(model, recipe), recipe)
    model = BERT(SMALL)
    checkpoint.fill(model, weights)
    (gate,) = task.evaluate(model.eval())
    assert gate.passed, gate
    assert fill(model, "finds a module, and binds a name in the [MASK] scope", top=1)[0][1] == "local"


def test_accuracy_of_one_constant_guess_is_the_unigram() -> None:
    """A model that always says the same can reach the commonest token's share, and that is the baseline."""
    model = small()
    model.token.weight.zero_()
    tokens = torch.tensor(model.vocabulary.encode(normalise(TEXT)))
    best = 0.0
    for token in tokens.unique().tolist():
        model.bias.zero_()
        model.bias[token] = 1
        accuracy, unigram = task.masked_accuracy(model, TEXT)
        assert accuracy <= unigram
        best = max(best, accuracy)
    assert best == unigram


def test_fill_replaces_the_blank_and_ranks_the_words() -> None:
    model = small()
    text = 'The  "[MASK]" statement,\nor [MASK].'
    found = fill(model, text, top=7)
    assert len(found) == len({word for _, word, _ in found}) == 7
    probabilities = [p for _, _, p in found]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1
    for filled, word, _ in found:
        assert filled.startswith(f'The  "{word}" statement,\nor ')
        assert "[MASK]" not in filled
        assert any(c.isalnum() for c in word) and word == word.strip()
    every = int(read_blanks(model, text).allowed[0].sum())
    assert sum(p for _, _, p in fill(model, text, top=every)) == pytest.approx(1, abs=1e-4)


def test_a_blank_inside_a_word_gets_a_piece_without_a_space() -> None:
    model = small()
    inside, before = read_blanks(model, "re[MASK] the [MASK]").allowed
    pieces = [model.vocabulary.text(token) for token in range(SMALL.vocab - 1)]
    assert not any(pieces[i].startswith(" ") for i in inside.nonzero().flatten().tolist())
    assert all(pieces[i].startswith(" ") for i in before.nonzero().flatten().tolist())


def test_mask_predict_rows_depend_on_their_seed_alone() -> None:
    model = small()
    blanks = read_blanks(model, "The [MASK] statement [MASK] a [MASK] in [MASK] scope")
    together = mask_predict(model, blanks, seeds=[4, 5, 6], temperature=1.0, steps=3)
    assert torch.equal(mask_predict(model, blanks, seeds=[5], temperature=1.0, steps=3)[0], together[1])
    assert len({tuple(row) for row in together.tolist()}) == 3
    kept = torch.ones(len(blanks.tokens), dtype=torch.bool)
    kept[blanks.at] = False
    assert (together[:, kept] == blanks.tokens[kept]).all()
    assert not (together == model.mask_token).any()


def test_one_blank_at_temperature_zero_is_the_first_of_fill() -> None:
    model = small()
    text = "The [MASK] statement"
    assert task.generate(model, n=1, seed=3, prompt=text, temperature=0) == [fill(model, text, top=1)[0][0]]


@given(st.text(max_size=3), st.text(max_size=3))
@settings(deadline=None, max_examples=30)
def test_the_rest_of_the_text_stays(before: str, after: str) -> None:
    model = small()
    if "[MASK]" in before + after:
        return
    (text,) = task.generate(model, n=1, seed=0, prompt=f"{before}[MASK]{after}")
    assert text.startswith(before) and text.endswith(after)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "text: got '', wants a sentence"),
        (" \n", r"text: got ' \\n', wants a sentence"),
        ("The statement", r"wants a sentence with at least one \[MASK\]"),
        ("[MASK] " * 33, "text: got 33 tokens, wants at most 32"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fill(small(), text)
    with pytest.raises(InputError, match=message.replace("text: got", "prompt: got")):
        task.generate(small(), n=1, seed=0, prompt=text)


@pytest.mark.parametrize("options", [{"n": 0}, {"steps": 0}, {"temperature": -1.0}, {"temperature": math.inf}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: got"):
        task.generate(small(), **{"n": 1, "seed": 0, **options})
    with pytest.raises(InputError, match="top: got 0"):
        fill(small(), "a [MASK]", top=0)


def test_shipped_model_knows_its_statements() -> None:
    model = registry.load("bert")
    words = [word for _, word, _ in fill(model, "The [MASK] statement", top=10)]
    statements = {"return", "import", "while", "for", "if", "try", "with", "del", "global", "raise", "assert", "pass"}
    assert len(statements & set(words)) >= 2, words

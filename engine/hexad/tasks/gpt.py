"""GPT on the Python language reference: recipe, continuation of a prompt, bits per character."""

import functools

import torch
from torch import Tensor, nn

from .. import checks, data
from ..evaluation import Gate
from ..models.gpt import GPT, Config
from ..ngram import witten_bell_bits
from ..sampling import Progress
from ..sampling.decode import continuations
from ..tokens import learn_merges
from ..training.likelihood import categorical_bits, maximum_likelihood, minibatch
from ..training.loop import GradientTrainer, Recipe

CONFIG = Config()
RECIPE = Recipe(steps=1500, batch=4, lr=4e-3, weight_decay=0.1, ema=0.99)
OPTIONS = frozenset({"prompt", "length", "temperature", "top_k", "top_p"})
PROMPT = 'The "while" statement is used for'


def build() -> GPT:
    return GPT(CONFIG)


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    """Maximum likelihood on windows of the training text; the vocabulary is learned from that text first."""
    gpt, text = checks.model_of(model, GPT), data.topics().train
    gpt.merges.copy_(learn_merges(text, gpt.config.vocab))
    tokens = torch.tensor(gpt.vocabulary.encode(text))
    windows = tokens.unfold(0, gpt.config.context + 1, 1)

    def bits(batch: Tensor) -> Tensor:
        return categorical_bits(gpt(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    return maximum_likelihood(gpt, recipe, lambda generator: minibatch(windows, recipe.batch, generator), bits)


def generate(
    model: nn.Module,
    *,
    n: int,
    seed: int,
    progress: Progress | None = None,
    prompt: str = PROMPT,
    length: int = 160,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 0.95,
) -> list[str]:
    """n texts: ``prompt`` and ``length`` tokens after it. Text i draws with seed + i, so it does not depend on n.

    Raises InputError for an empty prompt, one beyond the context, or an option out of its range.
    """
    gpt, seeds = checks.model_of(model, GPT), checks.seeds(n, seed)
    vocabulary = gpt.vocabulary
    rows = continuations(
        gpt,
        [vocabulary.encode(checks.text("prompt", prompt))] * n,
        seeds=seeds,
        length=checks.integer("length", length, 1),
        temperature=checks.number("temperature", temperature),
        top_k=checks.integer("top_k", top_k, 0),
        top_p=checks.share("top_p", top_p),
        progress=progress,
    )
    return [prompt + vocabulary.decode(row) for row in rows]


@torch.no_grad()
def bits_per_character(model: GPT, before: str, text: str) -> float:
    """-log2 P(text | before) per character, over the one tokenisation that ``encode`` gives.

    A window of the context's length moves on by half of it and scores its second half, so each token is scored
    once, with at least half a context before it; the first ones see the end of ``before``.
    """
    vocabulary, context = model.vocabulary, model.config.context
    half = context // 2
    tokens = vocabulary.encode(before)[-half:] + vocabulary.encode(text)
    if len(vocabulary.encode(before)) < half:
        raise ValueError(f"before: wants at least {half} tokens")
    total = 0.0
    for end in range(half, len(tokens), half):
        window = torch.tensor(tokens[end - half : end + half])
        logits = model(window[None, :-1])[0, half - 1 :]
        total += float(categorical_bits(logits, window[half:]).double().sum())
    return total / len(text)


@functools.cache
def baseline() -> float:
    """Bits per character of the best Witten-Bell n-gram, over n = 1..8."""
    return min(witten_bell_bits(*data.topics()).values())


def evaluate(model: nn.Module) -> list[Gate]:
    text = data.topics()
    bits = bits_per_character(checks.model_of(model, GPT), text.train, text.test)
    return [Gate("held-out text, against the best Witten-Bell n-gram", bits, "<", baseline(), "bits/character")]

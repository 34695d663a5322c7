"""BERT on the Python language reference: recipe, filling of blanks, accuracy on held-out text."""

import torch
from torch import Tensor, nn

from .. import checks, data
from ..evaluation import Gate
from ..models.bert import BERT, Config, normalise
from ..sampling import Progress
from ..sampling.infill import mask_predict, read_blanks
from ..tokens import learn_merges
from ..training.likelihood import minibatch
from ..training.loop import GradientTrainer, Recipe
from ..training.masked import hide, masked_language

CONFIG = Config()
RECIPE = Recipe(steps=5000, batch=8, lr=1.5e-3, warmup=200, weight_decay=0.1, ema=0.995)
OPTIONS = frozenset({"prompt", "steps", "temperature"})
PROMPT = "The [MASK] of a [MASK] is evaluated before the [MASK] is called."
SHORTEST = 8


def build() -> BERT:
    return BERT(CONFIG)


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    """Masked modelling of pieces of the training text; the vocabulary is learned from that text first.

    A batch holds ``recipe.batch`` contexts' worth of tokens in pieces of one length, drawn log-uniformly from
    ``SHORTEST`` up: users ask about single sentences, and in a short piece a blank soon finds its neighbours.
    """
    bert = checks.model_of(model, BERT)
    text, context = normalise(data.topics().train), bert.config.context
    bert.merges.copy_(learn_merges(text, bert.mask_token))
    tokens = torch.tensor(bert.vocabulary.encode(text))

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        length = round(SHORTEST * (context / SHORTEST) ** float(torch.rand((), generator=generator)))
        batch = minibatch(tokens.unfold(0, length, 1), recipe.batch * context // length, generator)
        return batch, torch.full((len(batch),), length)

    return masked_language(bert, recipe, bert.mask_token, draw)


def generate(
    model: nn.Module,
    *,
    n: int,
    seed: int,
    progress: Progress | None = None,
    prompt: str = PROMPT,
    steps: int = 4,
    temperature: float = 0.7,
) -> list[str]:
    """``prompt`` with every [MASK] filled, n times. Text i draws with seed + i, so it does not depend on n.

    ``steps`` rounds of mask-predict; temperature 0 takes the likeliest tokens. Raises InputError for an empty
    prompt, one without [MASK] or beyond the context, and for an option out of its range.
    """
    bert, seeds = checks.model_of(model, BERT), checks.seeds(n, seed)
    checks.integer("steps", steps, 1)
    checks.number("temperature", temperature)
    blanks = read_blanks(bert, prompt, argument="prompt")
    rows = mask_predict(bert, blanks, seeds=seeds, steps=steps, temperature=temperature, progress=progress)
    return [blanks.text(row) for row in rows]


@torch.no_grad()
def masked_accuracy(model: BERT, text: str, *, draws: int = 4) -> tuple[float, float]:
    """(accuracy on hidden tokens, share of the commonest of them): ``draws`` times 15 % of the text become [MASK].

    The second figure is what always guessing the single best token reaches on the very same positions.
    """
    tokens, context = torch.tensor(model.vocabulary.encode(normalise(text))), model.config.context
    windows = tokens[: len(tokens) // context * context].view(-1, context)
    lengths = torch.full((len(windows),), context)
    right, hidden = 0, []
    for i in range(draws):
        generator = torch.Generator().manual_seed(i)
        seen, chosen = hide(windows, lengths, model.mask_token, generator, masked=1.0, random=0.0)
        guesses = torch.cat(
            [model(*batch).argmax(-1) for batch in zip(seen.split(16), lengths.split(16), chosen.split(16))]
        )
        hidden.append(windows[chosen])
        right += int((guesses == hidden[-1]).sum())
    answers = torch.cat(hidden)
    return right / len(answers), int(answers.bincount().max()) / len(answers)


def evaluate(model: nn.Module) -> list[Gate]:
    accuracy, unigram = masked_accuracy(checks.model_of(model, BERT), data.topics().test)
    return [Gate("hidden tokens of held-out text, against 3x the unigram", accuracy, ">=", 3 * unigram)]

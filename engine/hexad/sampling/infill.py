"""Filling blanks: the likeliest words for one, and all of several at once by mask-predict.

Mask-predict (Ghazvininejad et al. 2019, https://arxiv.org/abs/1904.09324):

    fill every blank;  repeat: open the least confident ones again, fewer each round, and fill those
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hexad_kernels import sample

from .. import checks
from ..errors import InputError
from ..models.bert import BERT, normalise
from ..tokens import Vocabulary
from . import Progress

MASK = "[MASK]"


@dataclass(frozen=True)
class Blanks:
    """A text with blanks: its ``tokens`` (S,), where the K blanks are (``at``), and what each may become.

    ``allowed`` (K,V) bool: a blank stands for one word, so for a token with a letter or a digit in it, which
    starts with a space exactly where the text has one before the blank. ``parts`` is the text around them.
    """

    tokens: Tensor
    at: Tensor
    allowed: Tensor
    parts: tuple[str, ...]
    vocabulary: Vocabulary

    def text(self, row: Tensor) -> str:
        """The user's text with the blanks filled as in ``row`` (S,)."""
        filled = [self.vocabulary.text(token).lstrip() for token in row[self.at].tolist()]
        return self.parts[0] + "".join(word + part for word, part in zip(filled, self.parts[1:]))


def read_blanks(model: BERT, text: str, *, argument: str = "text") -> Blanks:
    """Read a text with at least one [MASK]. InputError, under the argument's name, when empty, without, or too long."""
    wants = f"a sentence with at least one {MASK}"
    parts = checks.text(argument, text, wants).split(MASK)
    if len(parts) == 1:
        raise InputError(argument, repr(text), wants)
    vocabulary = model.vocabulary
    pieces = [vocabulary.text(token) for token in range(len(vocabulary))]
    word = torch.tensor([re.search(r"[A-Za-z0-9]", piece) is not None for piece in pieces] + [False])
    spaced = torch.tensor([piece.startswith(" ") for piece in pieces] + [False])

    tokens: list[int] = []
    at, allowed = [], []
    for i, part in enumerate(parts):
        # The model reads the middle of a text, where words come with the space before them.
        plain = normalise(part if i else " " + part)
        tokens += vocabulary.encode(plain.rstrip())
        if i + 1 < len(parts):
            at.append(len(tokens))
            tokens.append(model.mask_token)
            allowed.append(word & (spaced if plain.endswith(" ") else ~spaced))
    if len(tokens) > model.config.context:
        raise InputError(argument, f"{len(tokens)} tokens", f"at most {model.config.context}")
    return Blanks(torch.tensor(tokens), torch.tensor(at), torch.stack(allowed), tuple(parts), vocabulary)


@torch.inference_mode()
def fill(model: BERT, text: str, top: int = 5) -> list[tuple[str, str, float]]:
    """The ``top`` likeliest words for the first blank: (filled text, word, probability among words), best first.

    Further blanks are then filled by mask-predict, for each of these words anew. InputError for an empty text,
    one without [MASK] or beyond the context, or a ``top`` out of range.
    """
    blanks = read_blanks(model, text)
    checks.integer("top", top, 1, int(blanks.allowed[0].sum()))
    logits = model(blanks.tokens[None])[0, blanks.at[0]].masked_fill(~blanks.allowed[0], -torch.inf)
    probabilities, words = logits.softmax(-1).topk(top)
    rows = blanks.tokens.repeat(top, 1)
    rows[:, blanks.at[0]] = words
    rows = _refine(model, rows, blanks.at[1:], blanks.allowed[1:])
    return [
        (blanks.text(row), blanks.vocabulary.text(word).strip(), p)
        for row, word, p in zip(rows, words.tolist(), probabilities.tolist())
    ]


@torch.inference_mode()
def mask_predict(
    model: BERT,
    blanks: Blanks,
    *,
    seeds: Sequence[int],
    steps: int = 4,
    temperature: float = 0.0,
    progress: Progress | None = None,
) -> Tensor:
    """Fill all blanks, once per seed: tokens (len(seeds), S). Row i draws with seeds[i] alone."""
    rows = blanks.tokens.repeat(len(seeds), 1)
    keys = torch.tensor(seeds, dtype=torch.int64)
    return _refine(model, rows, blanks.at, blanks.allowed, keys, steps, temperature, progress)


def _refine(
    model: BERT,
    rows: Tensor,
    at: Tensor,
    allowed: Tensor,
    keys: Tensor | None = None,
    steps: int = 4,
    temperature: float = 0.0,
    progress: Progress | None = None,
) -> Tensor:
    n, blanks = len(rows), len(at)
    rounds = min(steps, blanks)
    confidence = torch.zeros(n, blanks)
    each = torch.arange(n)[:, None]
    for i in range(rounds):
        count = blanks * (rounds - i) // rounds
        open_ = confidence.argsort(dim=1, stable=True)[:, :count]
        rows[each, at[open_]] = model.mask_token
        logits = model(rows)[each, at[open_]].masked_fill(~allowed[open_], -torch.inf).flatten(0, 1)
        tokens = sample(
            logits,
            None if keys is None else keys.repeat_interleave(count),
            position=i * blanks + open_.flatten(),
            temperature=temperature,
        )
        rows[each, at[open_]] = tokens.view(n, count)
        confidence[each, open_] = logits.softmax(-1).gather(1, tokens[:, None]).view(n, count)
        if progress is not None:
            progress(i + 1, rounds)
    return rows

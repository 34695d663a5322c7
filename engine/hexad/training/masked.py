"""Masked modelling: hide some tokens, and learn to tell them from the rest (Devlin et al. 2018, section 3.1)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loop import GradientTrainer, Recipe


def hide(
    tokens: Tensor,
    lengths: Tensor,
    mask_token: int,
    generator: torch.Generator,
    *,
    rate: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Choose ``rate`` of the tokens: ``masked`` of these become [MASK], ``random`` another token, the rest stay.

    tokens (B,S) int64 of texts that end at lengths (B,) -> (what the model sees (B,S), chosen (B,S) bool). The
    tokens that stay keep the model from trusting whatever is not a [MASK].
    """
    place = torch.arange(tokens.shape[1])
    chosen = (torch.rand(tokens.shape, generator=generator) < rate) & (place < lengths[:, None])
    fate = torch.rand(tokens.shape, generator=generator)
    other = torch.randint(mask_token, tokens.shape, generator=generator)
    seen = torch.where(chosen & (fate < masked), mask_token, tokens)
    return torch.where(chosen & (fate >= masked) & (fate < masked + random), other, seen), chosen


def masked_language(
    model: nn.Module,
    recipe: Recipe,
    mask_token: int,
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    *,
    rate: float = 0.15,
) -> GradientTrainer:
    """A trainer for ``model(tokens, lengths, chosen) -> logits``; ``draw(generator)`` gives (tokens, lengths).

    It minimises the cross-entropy, in nats, of the tokens that were hidden.
    """

    def loss(_: int, generator: torch.Generator) -> Tensor:
        tokens, lengths = draw(generator)
        seen, chosen = hide(tokens, lengths, mask_token, generator, rate=rate)
        # The sum over no token at all, in a tiny batch, is 0 rather than NaN.
        nats = F.cross_entropy(model(seen, lengths, chosen), tokens[chosen], reduction="sum")
        return nats / chosen.sum().clamp(min=1)

    return GradientTrainer(model, loss, recipe)

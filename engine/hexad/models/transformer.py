"""What GPT and BERT share: dropout per sequence, tables of rotary positions, the first weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def drop(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout with one mask per sequence, shared by its positions (Gal & Ghahramani 2016, arXiv:1512.05287).

    On small text it regularises as well as a mask per element, and costs far fewer random numbers.
    """
    if not training or not rate:
        return x
    return x * F.dropout(x.new_ones(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]), rate)


def rotary_tables(positions: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin (positions, head_dim / 2) float32 of i * 10000^(-2j / head_dim), for ``hexad_kernels.rope``.

    Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864. Computed in float64.
    """
    frequency = 10000.0 ** (-2 * torch.arange(head_dim // 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def check_heads(width: int, heads: int, rotary: bool) -> None:
    """ValueError unless the heads cut the width evenly, and into even parts where these are rotated."""
    if width % heads or (rotary and width // heads % 2):
        raise ValueError(f"heads: got {heads}, wants a divisor of width {width}, into even parts when rotary")


def initialise(model: nn.Module, width: int, *, ends: tuple[str, ...] = (), shrink: float = 1.0) -> None:
    """Matrices N(0, std^2), those whose name ends in one of ``ends`` times ``shrink``; biases 0.

    std is the published 0.02 at the published width of 768, and grows as 1 / sqrt(width) below.
    """
    std = 0.02 * (768 / width) ** 0.5
    for name, p in model.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=std * (shrink if name.endswith(ends) else 1.0))
        elif name.endswith("bias"):
            nn.init.zeros_(p)

"""The diffusion objective."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def velocity_loss(
    model: nn.Module,
    abar: np.ndarray,
    images: Tensor,
    labels: Tensor,
    *,
    null: int,
    drop: float = 0.1,
    batch: int = 128,
) -> Callable[[int, torch.Generator], Tensor]:
    """Loss of `model(x, t, labels)` in predicting the velocity (Salimans & Ho 2022, arXiv 2202.00512):

        x = alpha x0 + s eps,   v = alpha eps - s x0,
        loss = mean |model(x, t) - v|^2,   t uniform over the levels.

    images (N, C, H, W) in [-1, 1], labels (N,). A share `drop` of the labels becomes the class `null`, which
    makes the same network the unconditional one (Ho & Salimans 2022, arXiv 2207.12598).
    """
    alpha = torch.tensor(np.sqrt(abar), dtype=torch.float32)
    s = torch.tensor(np.sqrt(1 - abar), dtype=torch.float32)

    def loss(i: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (batch,), generator=generator)
        # One time per equal share of the range: less variance than independent draws, the same mean.
        shares = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        t = (shares * len(alpha)).long().clamp_max(len(alpha) - 1)
        x0 = images[rows]
        eps = torch.randn(x0.shape, generator=generator)
        dropped = torch.rand(batch, generator=generator) < drop
        a, b = (level[t].view(-1, 1, 1, 1) for level in (alpha, s))
        predicted = model(a * x0 + b * eps, t, labels[rows].masked_fill(dropped, null))
        return F.mse_loss(predicted, a * eps - b * x0)

    return loss

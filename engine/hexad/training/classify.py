"""Cross-entropy with label smoothing on shifted and blurred digits.

A judge must not reward texture that no digit has, nor be thrown by the softness of a generated one, so it
sees its training digits shifted by up to a pixel, slightly blurred, noisy and at varying contrast.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B,8,8) in [0,1] -> the same, each shifted, blurred, scaled and given noise at random."""
    count = len(images)
    corner = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows, columns = (corner + torch.arange(8)).unbind()
    padded = F.pad(images, (1, 1, 1, 1))
    shifted = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    blurred = F.avg_pool2d(shifted[:, None], 3, stride=1, padding=1)[:, 0]
    mixed = shifted.lerp(blurred, 0.3 * torch.rand(count, 1, 1, generator=generator))
    contrast = 0.8 + 0.4 * torch.rand(count, 1, 1, generator=generator)
    return (mixed * contrast + 0.05 * torch.randn(mixed.shape, generator=generator)).clamp(0, 1)


def classification_loss(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Smoothed cross-entropy of the model's logits on augmented images (B,8,8) with classes (B,)."""
    return F.cross_entropy(model(augment(images, generator)), labels, label_smoothing=0.05)

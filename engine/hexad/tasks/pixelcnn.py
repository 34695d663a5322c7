"""Gated PixelCNN on the digits, pixels drawn one by one from a cache."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks, data, registry
from ..evaluation import Gate
from ..models.pixelcnn import Config, PixelCNN
from ..sampling import Progress, pixels
from ..training.likelihood import categorical_bits, maximum_likelihood, minibatch
from ..training.loop import GradientTrainer, Recipe

RECIPE = Recipe(steps=2600, batch=64, lr=4e-3, weight_decay=0.02, ema=0.998)
OPTIONS: frozenset[str] = frozenset({"temperature"})
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
SHIFTED = 0.5  # the share of images drawn from all views; the others are shown as they are


def build() -> nn.Module:
    return PixelCNN(Config(views=len(SHIFTS)))


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    """Trains on shifted images too, and tells the model (Jun et al., 2020, "Distribution Augmentation")."""
    train = data.digits().train.x

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = minibatch(train, recipe.batch, generator)
        view = torch.randint(len(SHIFTS), (len(x),), generator=generator)
        view = view * (torch.rand(len(x), generator=generator) < SHIFTED)
        return shifted(x, view), view

    def bits(batch: tuple[Tensor, Tensor]) -> Tensor:
        x, view = batch
        return categorical_bits(model(x, view), x)

    return maximum_likelihood(model, recipe, draw, bits)


def shifted(x: Tensor, view: Tensor) -> Tensor:
    """Images (B,H,W), each shifted by SHIFTS[view]; black moves in."""
    height, width = x.shape[1:]
    padded = F.pad(x, (1, 1, 1, 1))
    moved = [padded[:, 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width] for dy, dx in SHIFTS]
    return torch.stack(moved)[view, torch.arange(len(x))]


def generate(
    model: nn.Module,
    *,
    n: int,
    seed: int,
    progress: Progress | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """n images (n,8,8) in [0,1]; image i is drawn with seed + i."""
    pixelcnn, seeds = checks.model_of(model, PixelCNN), torch.tensor(checks.seeds(n, seed))
    checks.number("temperature", temperature)
    levels = pixels.sample(pixelcnn, seeds, temperature=temperature, progress=progress)
    return levels / (data.LEVELS - 1)


@torch.no_grad()
def score(model: nn.Module, images: Tensor) -> Tensor:
    """Levels (B,8,8) -> bits/dim (B,), exact."""
    return categorical_bits(checks.model_of(model, PixelCNN)(checks.levels(images)), images).flatten(1).mean(1)


def evaluate(model: nn.Module) -> list[Gate]:
    """Bits/dim against the VAE's bound on the same images, and cached against uncached samples."""
    pixelcnn, test = checks.model_of(model, PixelCNN), data.digits().test.x
    vae = registry.entry("vae").load_task().score(registry.load("vae"), test)  # type: ignore[attr-defined]
    seeds = torch.arange(8)
    samples = [pixels.sample(pixelcnn, seeds, cached=cached) for cached in (True, False)]
    differing = (samples[0] != samples[1]).sum()
    return [
        Gate("test bits/dim", float(score(model, test).mean()), "<", float(vae.mean()), "bits/dim"),
        Gate("pixels where cached and uncached samples differ", float(differing), "==", 0),
    ]

"""RealNVP on the digits, dequantised by uniform noise: a density wants continuous data."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import hexad_kernels as hk

from .. import checks, data
from ..evaluation import Gate, bits_per_dim, gaussian_bits_per_dim
from ..models.realnvp import Config, Flow, RealNVP
from ..sampling import Progress, invert
from ..training.likelihood import maximum_likelihood, minibatch
from ..training.loop import GradientTrainer, Recipe

RECIPE = Recipe(steps=1500, batch=128, lr=2e-3, weight_decay=0.3, ema=0.995)
OPTIONS: frozenset[str] = frozenset({"temperature"})
DRAWS = 16  # dequantisations that a score averages over


def build() -> nn.Module:
    return RealNVP(Config())


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    flow, train = checks.model_of(model, Flow), data.digits().train.x[:, None]

    def draw(generator: torch.Generator) -> Tensor:
        return data.dequantise(minibatch(train, recipe.batch, generator), generator)

    with hk.backend("reference"):
        flow.initialise(data.dequantise(train, torch.Generator().manual_seed(recipe.seed)))
    return maximum_likelihood(flow, recipe, draw, lambda x: bits_per_dim(invert.log_prob(flow, x)))


def generate(
    model: nn.Module,
    *,
    n: int,
    seed: int,
    progress: Progress | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """n images (n,8,8) in [0,1]; image i comes from the noise of seed + i."""
    flow, seeds = checks.model_of(model, Flow), torch.tensor(checks.seeds(n, seed))
    x = invert.sample(flow, seeds, temperature=checks.number("temperature", temperature))[:, 0]
    if progress is not None:
        progress(1, 1)
    # The middle of a level's bin becomes the level. Not rounded to levels: a last bit would flip whole ones.
    return ((x * data.LEVELS - 0.5) / (data.LEVELS - 1)).clamp(0, 1)


@torch.no_grad()
def score(model: nn.Module, images: Tensor) -> Tensor:
    """Levels (B,8,8) -> bits/dim (B,): the mean over 16 dequantisations, the same for every image."""
    flow, images = checks.model_of(model, Flow), checks.levels(images)
    noise = torch.rand(DRAWS, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    total = torch.zeros(len(images))
    for u in noise:
        x = (images.float() + u) / data.LEVELS
        total += bits_per_dim(invert.log_prob(flow, x[:, None]))
    return total / DRAWS


def evaluate(model: nn.Module) -> list[Gate]:
    """Bits/dim against the full-covariance Gaussian's, the round trip, and log-det against autograd's."""
    flow, test = checks.model_of(model, Flow), data.digits().test.x
    x = data.dequantise(test, torch.Generator().manual_seed(0))[:, None]
    with torch.no_grad():
        round_trip = (flow.inverse(flow(x)[0])[0] - x).abs().max()
    return [
        Gate("test bits/dim", float(score(flow, test).mean()), "<", gaussian_bits_per_dim(), "bits/dim"),
        Gate("round trip", float(round_trip), "<=", 1e-5),
        Gate("log-det vs Jacobian", log_det_error(flow, x[:4]), "<=", 1e-8, "relative, fp64"),
    ]


def log_det_error(flow: Flow, x: Tensor) -> float:
    """The largest relative error of log |det df/dx| at x (B,1,H,W) against slogdet of autograd's, in fp64."""
    exact = copy.deepcopy(flow).double().eval().requires_grad_(False)
    with hk.backend("reference"):
        return float(relative_error(exact, x.double()))


def relative_error(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """For function(x (B,...)) -> (y, log |det dy/dx|): the log-det's largest relative error, by autograd."""
    batch, size = len(x), x[0].numel()
    with torch.enable_grad():
        # Rows of a batch do not meet: with each row repeated, one backward pass is the whole Jacobian.
        rows = x.detach().repeat_interleave(size, 0).requires_grad_()
        y, log_det = function(rows)
        seeds = torch.eye(size, dtype=x.dtype).repeat(batch, 1).view_as(y)
        (jacobian,) = torch.autograd.grad(y, rows, seeds)
    wanted = torch.linalg.slogdet(jacobian.reshape(batch, size, size))[1]
    return ((log_det.detach()[::size] - wanted).abs() / wanted.abs().clamp_min(1)).max()

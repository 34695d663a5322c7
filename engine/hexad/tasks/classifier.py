"""The digit classifier: trained on the train split only, and held to 97 % on the test split."""

from typing import NoReturn

import torch
from torch import Tensor, nn

from ..data import digits
from ..errors import InputError
from ..evaluation import Gate
from ..models.classifier import Classifier
from ..training.classify import classification_loss
from ..training.loop import GradientTrainer, Recipe

RECIPE = Recipe(steps=800, batch=64, lr=3e-3, weight_decay=0.05, ema=0.99)
OPTIONS: frozenset[str] = frozenset()


def build() -> nn.Module:
    return Classifier()


def trainer(model: nn.Module, recipe: Recipe) -> GradientTrainer:
    train = digits().train

    def loss(i: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train.x), (recipe.batch,), generator=generator)
        return classification_loss(model, train.x[rows] / 16, train.y[rows], generator)

    return GradientTrainer(model, loss, recipe)


def generate(model: nn.Module, **_: object) -> NoReturn:
    raise InputError("MODEL", "'classifier'", "a generative model; this one only judges them")


@torch.no_grad()
def evaluate(model: nn.Module) -> list[Gate]:
    test = digits().test
    accuracy = (model(test.x / 16).argmax(-1) == test.y).double().mean()
    return [Gate("test accuracy", float(accuracy), ">=", 0.97)]

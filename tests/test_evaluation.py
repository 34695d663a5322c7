import math

import numpy as np
import pytest
import torch

from hexad import data, evaluation
from hexad.evaluation import Gate


@pytest.mark.parametrize(
    ("relation", "below", "equal", "above"),
    [(">=", 0, 1, 1), ("<=", 1, 1, 0), (">", 0, 0, 1), ("<", 1, 0, 0), ("==", 0, 1, 0)],
)
def test_a_gate_keeps_its_relation(relation, below, equal, above):
    passed = [Gate("g", value, relation, 1.0).passed for value in (0.5, 1.0, 1.5, math.nan)]
    assert passed == [bool(below), bool(equal), bool(above), False]


def test_bits_per_dim_of_a_uniform_density_is_log2_of_the_levels():
    assert evaluation.bits_per_dim(torch.zeros(1)).item() == pytest.approx(math.log2(17), rel=1e-6)


def test_bits_per_dim_of_a_known_discrete_distribution():
    """Independent pixels with 17 bins each: a density that is constant within bins has exactly the entropy's bits."""
    p = torch.tensor([0.5] + [0.5 / 16] * 16).double()
    x = torch.multinomial(p, 64 * 1000, True, generator=torch.Generator().manual_seed(0)).view(1000, 64)
    log_density = (p[x] * 17).log().sum(1)
    assert evaluation.bits_per_dim(log_density).mean().item() == pytest.approx(-p[x].log2().mean().item(), rel=1e-9)


def test_the_gaussian_baseline_agrees_with_scipy_on_the_exact_moments():
    from scipy.stats import multivariate_normal

    train, test = (split.x.view(-1, 64).numpy().astype(float) for split in data.digits())
    mean = (train.mean(0) + 0.5) / 17
    covariance = (np.cov(train, rowvar=False, bias=True) + np.eye(64) / 12) / 17**2
    draws = (test + np.random.default_rng(5).random((8, *test.shape))) / 17
    log2 = multivariate_normal(mean, covariance).logpdf(draws.reshape(-1, 64)).mean() / math.log(2)
    wanted = -(log2 - 64 * math.log2(17)) / 64
    assert evaluation.gaussian_bits_per_dim() == pytest.approx(wanted, abs=0.01)


def test_the_classifier_reads_held_out_digits():
    test = data.digits().test
    assert evaluation.recognised(test.x / 16, test.y) >= 0.97
    assert evaluation.recognised(test.x / 16, (test.y + 1) % 10) <= 0.03


def test_the_classifier_is_not_trained_on_the_test_split(monkeypatch):
    """Its trainer sees the same bits whatever the test split holds."""
    from dataclasses import replace

    from hexad.tasks import classifier
    from hexad.training.loop import run

    def weights():
        torch.manual_seed(0)
        recipe = replace(classifier.RECIPE, steps=2)
        return run(classifier.trainer(classifier.build(), recipe), recipe)

    expected, digits = weights(), data.digits()
    spoilt = data.Images(torch.zeros_like(digits.test.x), digits.test.y)
    monkeypatch.setattr(classifier, "digits", lambda: digits._replace(test=spoilt))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights().items())

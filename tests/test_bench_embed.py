"""The table of `make bench-embed`: twins share their weights, checks are checks, verdicts follow the targets."""

import pytest
import torch

for host in ("transformers", "diffusers", "normflows"):
    pytest.importorskip(host, reason=f"{host} is not installed")

from bench.embed import images, text  # noqa: E402
from bench.embed.__main__ import MODELS, table, verdict  # noqa: E402
from bench.embed.row import Row, near, run, twin, weights  # noqa: E402


def test_twins_share_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    other = twin(model)
    assert other[0] is not model[0] and other[0].weight is model[0].weight
    assert other[1].running_mean is model[1].running_mean
    assert weights(model) == 24 and weights(model, model[1]) == 16


def test_a_row_is_checked_and_timed():
    x = torch.randn(64)
    with torch.no_grad():
        found = run(Row("sum", 0.0, lambda: x + 1, lambda: 1 + x, near(1e-6), bytes=256.0), seconds=0.01)
        wrong = run(Row("sum", 0.0, lambda: x + 1, lambda: x, near(1e-6)), seconds=0.01)
    assert verdict(found) == "met" and found["ratio"] > 0 and found["roof"] > 0
    assert verdict({**found, "target": 1e9}) == "missed"
    assert verdict(wrong) == "WRONG" and wrong["roof"] is None
    assert table([found, wrong]).row_count == 2


def test_checks_find_what_is_wrong():
    a = torch.tensor([[1, 2], [3, 4]])
    assert text.same_tokens(a, a.clone())[1] and not text.same_tokens(a, a + torch.tensor([[0, 0], [0, 1]]))[1]
    assert near(1e-3)(torch.ones(2), torch.ones(2) + 5e-4)[1]
    assert not near(1e-3)(torch.ones(2), torch.ones(2) + 5e-3)[1]
    assert not near(1e-3)(torch.ones(2), torch.full((2,), torch.nan))[1]


def test_every_model_has_its_rows():
    assert list(MODELS) == ["gpt2", "llama", "bert", "dit", "unet", "glow"]
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    model[0].weight.data.zero_()
    with torch.no_grad():
        assert images.spread(model)[0].weight.any()

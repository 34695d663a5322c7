import pytest
import torch
from torch import nn

import hexad_kernels as hk
from hexad import data, registry
from hexad.models.glow import Config, Conv3x3, Coupling, Glow, Mix
from hexad.sampling import invert
from hexad.tasks import glow as task
from hexad.tasks.realnvp import log_det_error, relative_error
from hexad.training.loop import Recipe, run
from hexad_kernels import invconv as invconv_op

SMALL = Config(steps=(2, 2), hidden=8)
SHAPE = (4, 4, 4)


def randomised(module: nn.Module, spread: float = 0.1) -> nn.Module:
    """Conditioners end in zeros when new, where a log-det of the wrong sign would still be right."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def images(n: int) -> torch.Tensor:
    return data.dequantise(data.digits().test.x[:n, None], torch.Generator().manual_seed(0))


@pytest.fixture
def flow() -> Glow:
    torch.manual_seed(0)
    return randomised(Glow(SMALL))


@pytest.mark.parametrize("make", [lambda: Mix(4), lambda: Coupling(SHAPE, SMALL)], ids=["mix", "coupling"])
def test_each_layer_inverts_and_knows_its_jacobian(make):
    torch.manual_seed(1)
    layer = randomised(make().double(), 0.3)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    with hk.backend("reference"):
        y, log_det = layer(x)
        back, back_log_det = layer.inverse(y)
        assert relative_error(layer, x) <= 1e-10
        assert relative_error(layer.inverse, y) <= 1e-10
    torch.testing.assert_close(back, x, rtol=0, atol=1e-11)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-10)
    assert log_det.abs().min() > 0.1  # or the test would say nothing


def test_the_whole_flow_knows_its_jacobian(flow):
    assert log_det_error(flow, images(2)) <= 1e-8


def test_round_trip_in_fp32(flow):
    x = images(64)
    assert (flow.inverse(flow(x)[0])[0] - x).abs().max() <= 1e-5


def test_mix_is_actnorm_then_a_1x1_convolution():
    torch.manual_seed(2)
    mix = randomised(Mix(4), 0.5)
    x = torch.randn(2, *SHAPE)
    normed = (x + mix.bias[:, None, None]) * torch.exp(mix.log_scale)[:, None, None]
    wanted = torch.einsum("oc,bchw->bohw", mix.weight, normed)
    torch.testing.assert_close(mix(x)[0], wanted, rtol=1e-5, atol=1e-5)


def test_mix_normalises_the_first_data_it_is_shown():
    mix = Mix(4)
    x = 3 + 2 * torch.randn(200, *SHAPE)
    mix.initialise(x)
    with torch.no_grad():
        y = torch.einsum("co,bchw->bohw", mix.weight, mix(x)[0])  # undo the rotation
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(4), rtol=0, atol=1e-3)


def test_the_fold_is_kept_until_a_parameter_changes():
    mix = randomised(Mix(4))
    x = torch.randn(2, *SHAPE)
    kept = mix.folded()
    assert mix.folded()[0][0] is kept[0][0]
    mix.log_scale.add_(0.5)
    assert mix.folded()[0][0] is not kept[0][0]
    assert mix.double().folded()[0][0].dtype == torch.float64
    mix.float()
    torch.testing.assert_close(mix.inverse(mix(x)[0])[0], x, rtol=0, atol=1e-5)


def test_learning_reaches_every_parameter_of_the_mix():
    mix = Mix(4)
    with hk.backend("reference"):
        y, log_det = mix(torch.randn(2, *SHAPE))
        (y.square().sum() - log_det.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mix.parameters())


def test_patches_make_the_same_convolution_as_torch():
    torch.manual_seed(3)
    conv = randomised(Conv3x3(3, 5))
    x = torch.randn(2, 3, 4, 6)
    kernel = conv.weight.view(5, 3, 3, 3).movedim(-1, 1)
    wanted = nn.functional.conv2d(x, kernel, conv.bias, padding=1).relu()
    torch.testing.assert_close(conv(x.movedim(1, -1), "relu").movedim(-1, 1), wanted, rtol=1e-5, atol=1e-5)


def test_a_sample_depends_on_its_own_seed_only(flow):
    many = invert.sample(flow, torch.arange(5, 12))
    assert torch.equal(invert.sample(flow, torch.tensor([8])), many[3:4])
    assert not torch.equal(many[3], many[4])


def test_sampling_uses_the_op_it_says(flow, monkeypatch):
    calls = []
    monkeypatch.setattr(hk, "invconv", lambda *a, **k: calls.append(1) or invconv_op(*a, **k))
    invert.sample(flow, torch.arange(2))
    assert len(calls) == sum(SMALL.steps)


def test_training_lowers_bits_per_dim():
    torch.manual_seed(0)
    model = Glow(SMALL)
    recipe = Recipe(steps=30, batch=32, lr=1e-2, warmup=5)
    trainer = task.trainer(model, recipe)
    test = data.digits().test.x[:50]
    before = float(task.score(model.eval(), test).mean())
    run(trainer, recipe)
    assert float(task.score(model.eval(), test).mean()) < before - 0.05


def test_the_shipped_weights_pass_their_gates():
    for gate in task.evaluate(registry.load("glow")):
        assert gate.passed, gate

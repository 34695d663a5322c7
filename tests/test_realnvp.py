import copy

import pytest
import torch

import hexad_kernels as hk
from hexad import data, registry
from hexad.errors import InputError
from hexad.evaluation import bits_per_dim
from hexad.models import realnvp
from hexad.models.realnvp import Config, Coupling, Flow, Logit, RealNVP, Squeeze, Standardise
from hexad.sampling import invert
from hexad.tasks import realnvp as task
from hexad.training.loop import run

SMALL = Config(couplings=(2, 2, 2), hidden=16)
HALF = (4, 4, 4)
LAYERS = {
    "logit": lambda: Logit(0.05),
    "standardise": lambda: Standardise(*HALF),
    "squeeze": lambda: Squeeze(),
    **{
        f"{split}{' flipped' * flip}": lambda split=split, flip=flip: Coupling(HALF, split, flip, SMALL)
        for split in ("channel", "checkerboard")
        for flip in (False, True)
    },
}


def randomised(module: torch.nn.Module, spread: float = 0.3) -> torch.nn.Module:
    """Conditioners end in zeros when new, where a log-det of the wrong sign would still be right."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    return module.eval().requires_grad_(False)


def images(n: int) -> torch.Tensor:
    return data.dequantise(data.digits().test.x[:n, None], torch.Generator().manual_seed(0))


@pytest.fixture
def flow() -> Flow:
    torch.manual_seed(0)
    return randomised(RealNVP(SMALL), 0.1)


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_inverts_and_knows_its_jacobian(name):
    torch.manual_seed(1)
    layer = randomised(LAYERS[name]().double())
    x = torch.rand(3, *HALF, dtype=torch.float64)
    with hk.backend("reference"):
        y, log_det = layer(x)
        back, back_log_det = layer.inverse(y)
        assert task.relative_error(layer, x) <= 1e-10
        assert task.relative_error(layer.inverse, y) <= 1e-10
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-10)
    if name != "squeeze":
        assert log_det.abs().min() > 0.1  # or the test would say nothing


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("split", ["channel", "checkerboard"])
def test_a_coupling_passes_one_half_and_moves_the_other(split, flip):
    torch.manual_seed(2)
    layer = randomised(Coupling(HALF, split, flip, SMALL))
    x = torch.randn(2, *HALF)
    moved = (layer(x)[0] != x).flatten(1)
    assert moved.sum(1).tolist() == [32, 32]
    assert not moved[:, layer.passive].any()


def test_new_couplings_are_the_identity():
    x = torch.randn(2, *HALF)
    y, log_det = Coupling(HALF, "channel", False, SMALL).eval()(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(2))


def test_the_whole_flow_knows_its_jacobian(flow):
    assert task.log_det_error(flow, images(2)) <= 1e-8


def test_the_jacobian_check_notices_a_wrong_log_det(flow, monkeypatch):
    original = realnvp.Standardise.forward
    monkeypatch.setattr(realnvp.Standardise, "forward", lambda self, x: (original(self, x)[0], -original(self, x)[1]))
    assert task.log_det_error(flow, images(2)) > 1e-3


def test_round_trip_in_fp32(flow):
    x = images(64)
    z, log_det = flow(x)
    assert z.dtype == log_det.dtype == torch.float32
    assert (flow.inverse(z)[0] - x).abs().max() <= 1e-5


def test_log_prob_is_the_change_of_variables_in_fp64(flow):
    x = images(8)
    with hk.backend("reference"):
        z, log_det = copy.deepcopy(flow).double()(x.double())
    wanted = torch.distributions.Normal(0, 1).log_prob(z.double()).flatten(1).sum(1) + log_det
    torch.testing.assert_close(invert.log_prob(flow, x).double(), wanted, rtol=1e-5, atol=1e-3)


def test_a_sample_depends_on_its_own_seed_only(flow):
    many = invert.sample(flow, torch.arange(5, 12))
    assert torch.equal(invert.sample(flow, torch.tensor([8])), many[3:4])
    assert not torch.equal(many[3], many[4])


def test_temperature_scales_the_noise(flow):
    noise = hk.randn(torch.tensor([3]), flow.latent_shape)
    x = invert.sample(flow, torch.tensor([3]), temperature=0.5)
    assert torch.equal(x, flow.inverse(0.5 * noise)[0])


def test_generate_rounds_to_the_levels_drawn_and_score_judges_each_image_alone(flow):
    pictures = task.generate(flow, n=3, seed=1)
    assert pictures.shape == (3, 8, 8)
    assert pictures.dtype == torch.float32
    assert 0 <= pictures.min() <= pictures.max() <= 1
    levels = data.quantise(pictures)
    drawn = invert.sample(flow, torch.arange(1, 4))[:, 0]
    assert torch.equal(levels, (drawn * 17).floor().clamp(0, 16).to(torch.uint8))
    scores = task.score(flow, levels)
    assert torch.equal(task.score(flow, levels[1:2]), scores[1:2])


@pytest.mark.parametrize(("argument", "options"), [("n", {"n": 0}), ("temperature", {"n": 1, "temperature": -1.0})])
def test_bad_requests_are_named(flow, argument, options):
    with pytest.raises(InputError, match=argument):
        task.generate(flow, seed=0, **options)


def test_training_lowers_bits_per_dim_and_repeats_exactly():
    recipe = task.Recipe(steps=30, batch=32, lr=1e-2, warmup=5)

    def trained() -> tuple[float, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = RealNVP(SMALL)
        trainer = task.trainer(model, recipe)
        before = float(task.score(model.eval(), data.digits().test.x[:50]).mean())
        weights = run(trainer, recipe)
        return before - float(task.score(model.eval(), data.digits().test.x[:50]).mean()), weights

    (gain, weights), (_, again) = trained(), trained()
    assert gain > 0.05
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_standardise_whitens_what_it_is_shown():
    x = 3 + 2 * torch.randn(500, *HALF)
    layer = Standardise(*HALF)
    layer.initialise(x)
    y, _ = layer(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(HALF), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.std(0), torch.ones(HALF), rtol=0, atol=1e-4)


def test_bits_of_a_uniform_density_are_those_of_the_levels():
    assert float(bits_per_dim(torch.zeros(1))) == pytest.approx(torch.log2(torch.tensor(17.0)).item())


def test_the_shipped_weights_pass_their_gates():
    for gate in task.evaluate(registry.load("realnvp")):
        assert gate.passed, gate

"""The VAE: shapes, the bound, samples and scores that stand alone, and the shipped weights' gates."""

import math

import pytest
import torch

import hexad_kernels
from hexad import data, registry
from hexad.errors import InputError
from hexad.layers import Conv
from hexad.models.vae import VAE, Config
from hexad.tasks import vae
from hexad.training.elbo import elbo_loss, elbo_terms, gaussian_kl, to_image

SMALL = Config(latent=4, width=8, groups=4, dropout=0.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VAE(SMALL).eval()


def test_shapes(model):
    mean, log_variance = model.encode(torch.randn(3, 1, 8, 8))
    assert mean.shape == log_variance.shape == (3, 4)
    assert model.decode(mean).shape == (3, 17, 8, 8)


def test_levels_span_the_image_range():
    assert to_image(torch.tensor([[[0, 8, 16]]], dtype=torch.uint8), 17).flatten().tolist() == [-1, 0, 1]


def test_kl_is_that_of_torch():
    mean, log_variance = torch.randn(5, 3), torch.randn(5, 3)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    want = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0, 1)).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), want)


def test_bound_of_a_decoder_that_knows_nothing(model):
    """Uniform over 17 levels with a posterior equal to the prior: exactly log2 17 bits per pixel."""
    with torch.no_grad():
        for layer in (model.output, model.posterior):
            layer.weight.zero_()
            layer.bias.zero_()
    images = data.digits().test.x[:3]
    torch.testing.assert_close(vae.score(model, images), torch.full((3,), math.log2(17)))


def test_bound_is_below_the_importance_weighted_one(model):
    """log mean_k p(x, z_k) / q(z_k | x) is at least the mean of the logs, and needs the same ingredients."""
    images, noise = data.digits().test.x[:4], torch.randn(32, 4, 4)
    with torch.no_grad():
        mean, log_variance = model.encode(to_image(images, 17))
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        log_weights = []
        for draw in noise:
            z = mean + draw * posterior.scale
            prior = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
            likelihood = -elbo_terms(model, images, draw)[0]
            log_weights.append(likelihood + prior - posterior.log_prob(z).sum(1))
        weights = torch.stack(log_weights)
        distortion, kl = elbo_terms(model, images, noise)
    torch.testing.assert_close(weights.mean(0), -(distortion + kl), rtol=0.02, atol=0.5)
    assert (weights.logsumexp(0) - math.log(len(noise)) >= weights.mean(0)).all()


def test_sample_does_not_depend_on_n(model):
    five, two = (vae.generate(model, n=n, seed=3) for n in (5, 2))
    assert five.shape == (5, 8, 8)
    assert five.dtype == torch.float32
    assert five.min() >= 0
    assert five.max() <= 1
    assert torch.equal(five[:2], two)
    assert not torch.equal(five[0], five[1])


def test_score_does_not_depend_on_the_batch(model):
    images = data.digits().test.x[:5]
    together = vae.score(model, images)
    assert together.shape == (5,)
    assert torch.equal(together[3:4], vae.score(model, images[3:4]))


def test_nothing_asked_for(model):
    with pytest.raises(InputError, match=r"^n: got 0"):
        vae.generate(model, n=0, seed=0)


@pytest.mark.parametrize(
    ("kernel", "stride", "activation"), [(3, 1, None), (3, 2, "silu"), (1, 1, "tanh"), (5, 2, None)]
)
def test_convolution_in_training_and_in_use_agree(kernel, stride, activation):
    layer = Conv(3, 6, kernel, stride)
    x = torch.randn(2, 3, 7, 10)
    with torch.no_grad():
        want, got = layer.train()(x, activation), layer.eval()(x, activation)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_objective_falls():
    torch.manual_seed(0)
    model = VAE(SMALL).train()
    images = data.digits().train.x[:64]
    loss = elbo_loss(model, images, batch=32)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    values = []
    with hexad_kernels.backend("reference"):
        for i in range(15):
            value, figures = loss(i, torch.Generator().manual_seed(i))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            values.append(value.item())
    assert values[0] == pytest.approx(math.log2(17), rel=0.25)
    assert values[-1] < values[0] - 0.3
    assert set(figures) == {"kl"}


def test_shipped_weights_pass_their_gates():
    for gate in vae.evaluate(registry.load("vae")):
        assert gate.passed, gate

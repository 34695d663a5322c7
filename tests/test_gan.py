"""The GAN: shapes, the folded norms, samples that stand alone, a resumable objective, and the shipped
weights' gates."""

import copy

import pytest
import torch

from hexad import data, registry
from hexad.errors import InputError
from hexad.models.gan import Config, Discriminator, Generator
from hexad.tasks import gan
from hexad.training.adversarial import AdversarialTrainer
from hexad.training.loop import Recipe

SMALL = Config(latent=8, width=8)


@pytest.fixture
def generator():
    """Untrained, but with norms that do something."""
    torch.manual_seed(0)
    model = Generator(SMALL)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    return model.eval()


def test_folding_equals_batch_norm(generator):
    unfolded = copy.deepcopy(generator)
    unfolded.train()
    for module in unfolded.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # running statistics, but as a layer of its own
    z, labels = torch.randn(6, 8), torch.arange(6)
    assert generator.start.folded is not None
    assert unfolded.start.folded is None
    with torch.no_grad():
        torch.testing.assert_close(generator(z, labels), unfolded(z, labels), rtol=1e-5, atol=1e-5)


def test_folded_weights_do_not_outlive_training(generator):
    z, labels = torch.randn(2, 8), torch.arange(2)
    with torch.no_grad():
        before = generator(z, labels)
        generator.train()
        generator.detail.norm.bias.add_(1.0)
        after = generator.eval()(z, labels)
    assert not torch.allclose(before, after)
    assert not any("folded" in name for name in generator.state_dict())


def test_sample_does_not_depend_on_n(generator):
    five, two = (gan.generate(generator, n=n, seed=3) for n in (5, 2))
    assert five.shape == (5, 8, 8)
    assert five.dtype == torch.float32
    assert five.min() >= 0
    assert five.max() <= 1
    assert torch.equal(five[:2], two)
    assert torch.equal(gan.generate(generator, n=1, seed=4, class_=1)[0], five[1])
    assert not torch.equal(gan.generate(generator, n=1, seed=4, class_=2)[0], five[1])


@pytest.mark.parametrize(
    ("options", "name"), [({"class_": 10}, "class_"), ({"class_": -1}, "class_"), ({"n": 0}, "n")]
)
def test_bad_input_names_the_argument(generator, options, name):
    with pytest.raises(InputError, match=f"^{name}: got "):
        gan.generate(generator, **{"n": 1, "seed": 0, **options})


def small_trainer():
    torch.manual_seed(0)
    x, y = data.digits().train
    recipe = Recipe(steps=4, batch=8, lr=1e-3, ema=0.9)
    images = x[:64, None].float() / 8 - 1
    return AdversarialTrainer(Generator(SMALL), Discriminator(SMALL), images, y[:64], recipe, r1=0.1)


def test_training_resumes_to_the_same_bits():
    straight, first, second = small_trainer(), small_trainer(), small_trainer()
    for i in range(4):
        figures = straight.step(i)
    for i in range(2):
        first.step(i)
    second.load(first.state())
    for i in range(2, 4):
        resumed = second.step(i)
    assert figures == resumed
    assert set(figures) == {"discriminator", "generator"}
    want, got = straight.result(), second.result()
    assert all(torch.equal(want[name], got[name]) for name in want)
    Generator(SMALL).load_state_dict(got)


def test_discriminator_learns_from_the_label():
    torch.manual_seed(0)
    judge = Discriminator(SMALL).eval()
    images = torch.randn(1, 1, 8, 8).expand(10, -1, -1, -1)
    assert judge(images, torch.arange(10)).unique().numel() == 10


def test_shipped_weights_pass_their_gates():
    for gate in gan.evaluate(registry.load("gan"), n=200):
        assert gate.passed, gate

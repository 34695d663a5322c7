import pytest
import torch

import hexad_kernels as hk
from hexad import data, registry
from hexad.errors import InputError
from hexad.models.pixelcnn import Config, PixelCNN, gate
from hexad.sampling import pixels
from hexad.tasks import pixelcnn as task
from hexad.training.loop import run

SMALL = Config(channels=8, layers=3)


def randomised(config: Config = SMALL) -> PixelCNN:
    """Not as new: offsets start at zero, where forgetting them would go unnoticed."""
    torch.manual_seed(0)
    model = PixelCNN(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> PixelCNN:
    return randomised()


def images(n: int) -> torch.Tensor:
    return data.digits().test.x[:n]


def test_a_pixels_logits_see_exactly_the_earlier_pixels():
    model = randomised(Config(channels=8, layers=8))  # deep enough to see everything
    x = images(1)
    with hk.backend("reference"):
        base = model(x)
        for place in (0, 9, 27, 40, 62):
            changed = x.clone().flatten(1)
            changed[:, place] = (changed[:, place] + 7) % 17
            differs = (model(changed.view_as(x)) != base).any(1).flatten()
            assert not differs[: place + 1].any()
            assert differs[place + 1 :].any()


def test_no_pixel_above_or_left_is_out_of_sight():
    """The blind spot of a stack of single masked convolutions: pixels above, to the right."""
    model = randomised(Config(channels=8, layers=8)).double()
    place = model.planes(images(1)).requires_grad_()
    with hk.backend("reference"), torch.enable_grad():
        v = h = place
        for layer in model.layers:
            v, down = layer.vertical(v)
            h = layer.horizontal(h, down)
        (gradient,) = torch.autograd.grad(model.read_out(h)[0, :, 4, 3].sum(), place)
    seen = gradient[0].abs().sum(0) > 0
    earlier = torch.arange(64).view(8, 8) < 4 * 8 + 3
    assert torch.equal(seen, earlier)


def test_cached_logits_are_the_uncached_ones_bit_for_bit(model):
    x = images(5)
    whole = model(x)
    cache = pixels.Cache(model, len(x))
    for row in range(8):
        pixels.start_row(model, cache, row)
        for col in range(8):
            assert torch.equal(pixels.pixel_logits(model, cache, row, col), whole[:, :, row, col]), (row, col)
            cache.write(model, row, col, x[:, row, col])


@pytest.mark.parametrize(
    "config", [SMALL, Config(), Config(levels=5, size=6, channels=20, layers=2, kernel=5)], ids=str
)
def test_the_kernels_logits_are_the_networks_bit_for_bit(config):
    model = randomised(config)
    x = torch.randint(config.levels, (5, config.size, config.size), generator=torch.Generator().manual_seed(1))
    logits = hk.gated_pixelcnn(x, model.packed(), **model.network())
    assert torch.equal(logits.transpose(1, 2).reshape(5, config.levels, config.size, config.size), model(x))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_samples_are_the_uncached_ones(model, temperature):
    seeds = torch.arange(4)
    uncached = pixels.sample(model, seeds, temperature=temperature, cached=False)
    assert torch.equal(pixels.sample(model, seeds, temperature=temperature), uncached)
    assert torch.equal(pixels.layer_by_layer(model, seeds, temperature), uncached)
    with hk.backend("reference"):
        assert torch.equal(pixels.sample(model, seeds, temperature=temperature), uncached)


def test_a_stale_cache_is_noticed(model, monkeypatch):
    seeds = torch.arange(4)
    wanted = pixels.sample(model, seeds, cached=False)
    monkeypatch.setattr(pixels.Cache, "write", lambda *_: None)
    assert not torch.equal(pixels.layer_by_layer(model, seeds, 1.0), wanted)


def test_a_sample_depends_on_its_own_seed_only(model):
    many = pixels.sample(model, torch.arange(6))
    assert torch.equal(pixels.sample(model, torch.tensor([4])), many[4:5])
    assert not torch.equal(many[3], many[4])


@pytest.mark.parametrize("count", [1, 3, 7, 16, 33])
def test_the_gate_rounds_alike_wherever_an_element_stands(count):
    x = 4 * torch.randn(1, 2, 97)
    assert torch.equal(gate(x[..., :count].contiguous()), gate(x)[..., :count])


def test_the_gate_closes_and_saturates():
    a, b = torch.tensor([[0.0], [50.0], [50.0], [-50.0]]), torch.tensor([[3.0], [200.0], [-200.0], [200.0]])
    out = gate(torch.cat([a, b], 1)).flatten()
    torch.testing.assert_close(out, torch.tensor([0.0, 1.0, 0.0, -1.0]), rtol=0, atol=1e-3)


def test_score_is_the_chain_rule(model):
    x = images(3)
    chain = torch.zeros(3)
    for i in range(64):
        seen = x.clone().flatten(1)
        seen[:, i:] = 0
        chances = model(seen.view_as(x)).flatten(2)[:, :, i].softmax(1)
        chain -= chances.gather(1, x.flatten(1)[:, i : i + 1].long()).log2().flatten()
    torch.testing.assert_close(task.score(model, x), chain / 64, rtol=1e-4, atol=1e-4)


def test_shifted_moves_black_in():
    x = images(2)
    for view, (dy, dx) in enumerate(task.SHIFTS):
        wanted = torch.zeros_like(x)
        for row in range(8):
            for col in range(8):
                if 0 <= row - dy < 8 and 0 <= col - dx < 8:
                    wanted[:, row, col] = x[:, row - dy, col - dx]
        assert torch.equal(task.shifted(x, torch.full((2,), view)), wanted)


def test_the_first_view_is_the_image_as_it_is():
    model = PixelCNN(SMALL).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.view.weight[1:].normal_()
        x = images(2)
        assert torch.equal(model(x, torch.zeros(2, dtype=torch.int64)), model(x))
        assert not torch.equal(model(x, torch.ones(2, dtype=torch.int64)), model(x))


def test_generate_gives_grey_levels(model):
    seen = []
    pictures = task.generate(model, n=2, seed=5, progress=lambda done, total: seen.append((done, total)))
    assert pictures.shape == (2, 8, 8)
    assert pictures.dtype == torch.float32
    assert torch.equal(data.quantise(pictures) / 16, pictures)
    assert seen == [(i + 1, 64) for i in range(64)]


@pytest.mark.parametrize(("argument", "options"), [("n", {"n": 0}), ("temperature", {"n": 1, "temperature": -1.0})])
def test_bad_requests_are_named(model, argument, options):
    with pytest.raises(InputError, match=argument):
        task.generate(model, seed=0, **options)


def test_training_lowers_bits_per_dim_and_repeats_exactly():
    recipe = task.Recipe(steps=15, batch=16, lr=1e-2, warmup=5)

    def trained() -> tuple[float, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = PixelCNN(SMALL)
        before = float(task.score(model.eval(), images(50)).mean())
        weights = run(task.trainer(model, recipe), recipe)
        return before - float(task.score(model.eval(), images(50)).mean()), weights

    (gain, weights), (_, again) = trained(), trained()
    assert gain > 0.2
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_the_shipped_weights_pass_their_gates():
    for gate_ in task.evaluate(registry.load("pixelcnn")):
        assert gate_.passed, gate_

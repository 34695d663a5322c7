"""DiT: shapes, adaLN-zero, guidance, samples that stand alone, samplers against diffusers, the shipped
weights."""

import pytest
import torch

from hexad import data, registry
from hexad.errors import InputError
from hexad.models.dit import Config, DiT
from hexad.sampling import schedules
from hexad.tasks import dit
from hexad.training.denoising import velocity_loss
from hexad_kernels import randn

SMALL = Config(width=16, depth=2, heads=2)


def scrambled(config=SMALL):
    """Untrained, with every parameter that starts at zero moved off it."""
    torch.manual_seed(0)
    model = DiT(config).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


@pytest.mark.parametrize("config", [SMALL, Config(size=6, channels=3, patch=3, width=12, depth=1, heads=3)])
def test_shapes(config):
    x = torch.randn(2, config.channels, config.size, config.size)
    y = scrambled(config)(x, torch.tensor([0, 999]), torch.tensor([0, 10]))
    assert y.shape == x.shape


def test_blocks_start_as_identity_and_the_output_at_zero():
    model = DiT(SMALL)
    h, condition = torch.randn(2, 16, 16), torch.randn(2, 16)
    assert torch.equal(model.blocks[0](h, condition), h)
    assert not model(torch.randn(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.int64)).any()


def test_a_token_sits_where_its_patch_was():
    """With blocks as identity, the output at a patch depends on the input at that patch only."""
    model = DiT(SMALL).eval()
    torch.nn.init.normal_(model.output.weight)
    x, t, y = torch.randn(1, 1, 8, 8), torch.tensor([5]), torch.tensor([3])
    moved = x.clone()
    moved[0, 0, 2:4, 4:6] += torch.randn(2, 2)
    with torch.no_grad():
        changed = (model(x, t, y) != model(moved, t, y))[0, 0]
    assert changed[2:4, 4:6].all()
    assert changed.sum() == 4


def test_output_depends_on_time_and_class():
    model, x = scrambled(), torch.randn(1, 1, 8, 8).expand(4, -1, -1, -1)
    y = model(x, torch.tensor([1, 2, 1, 1]), torch.tensor([0, 0, 1, 10]))
    assert y.flatten(1).unique(dim=0).shape[0] == 4


def test_guidance_is_linear():
    """The first DDIM step without clipping is affine in the guidance scale, through cond at 1 and uncond at
    0."""
    model, z = scrambled(), randn(torch.arange(4), (1, 8, 8))
    labels, times = torch.arange(4), schedules.spaced(1000, 25)[:1]

    def first(guidance, labels=labels):
        plan = schedules.ddim(dit.ALPHAS, times, prediction="v", guidance=guidance, final=0.5)
        from hexad.sampling.denoise import sample_ddim

        return sample_ddim(dit.guided(model, labels, guidance), z, plan)

    zero, one, three = first(0.0), first(1.0), first(3.0)
    torch.testing.assert_close(three, zero + 3 * (one - zero), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(zero, first(1.0, torch.full((4,), 10)), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(one, three, atol=1e-3)


@pytest.mark.parametrize("sampler", dit.SAMPLERS)
def test_sample_does_not_depend_on_n(sampler):
    model = scrambled()
    five, two = (dit.generate(model, n=n, seed=3, steps=4, sampler=sampler) for n in (5, 2))
    assert five.shape == (5, 8, 8)
    assert five.dtype == torch.float32
    assert five.min() >= 0
    assert five.max() <= 1
    assert torch.equal(five[:2], two)
    assert torch.equal(dit.generate(model, n=1, seed=4, steps=4, sampler=sampler, class_=1)[0], five[1])


def test_progress_is_told_of_each_step():
    told = []
    dit.generate(scrambled(), n=1, seed=0, steps=3, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("options", "name"),
    [({"n": 0}, "n"), ({"class_": 10}, "class_"), ({"steps": 0}, "steps"), ({"steps": 1001}, "steps"),
     ({"sampler": "ddmp"}, "sampler")],
)  # fmt: skip
def test_bad_input_names_the_argument(options, name):
    with pytest.raises(InputError, match=f"^{name}: got "):
        dit.generate(scrambled(), **{"n": 1, "seed": 0, **options})


def test_objective_is_zero_for_the_true_velocity():
    images, labels = data.digits().train.x[:4, None].float() / 8 - 1, torch.arange(4)
    seen = []

    def oracle(x, t, y):
        """Which image it was is told by the label: solve x = alpha x0 + s eps for eps."""
        seen.append((t, y))
        a = torch.tensor(dit.ALPHAS, dtype=torch.float64)[t].view(-1, 1, 1, 1)
        x0 = images[y].double()
        eps = (x.double() - a.sqrt() * x0) / (1 - a).sqrt()
        return (a.sqrt() * eps - (1 - a).sqrt() * x0).float()

    loss = velocity_loss(oracle, dit.ALPHAS, images, labels, null=10, drop=0.0, batch=64)
    assert loss(0, torch.Generator().manual_seed(0)).item() < 1e-6
    t, y = seen[0]
    assert 0 <= t.min() < 32
    assert 968 <= t.max() <= 999
    assert set(y.tolist()) == {0, 1, 2, 3}


def test_a_share_of_the_labels_becomes_the_null_class():
    seen = []

    def model(x, t, y):
        seen.append(y)
        return x

    loss = velocity_loss(
        model, dit.ALPHAS, torch.zeros(8, 1, 8, 8), torch.arange(8), null=10, drop=0.25, batch=4000
    )
    loss(0, torch.Generator().manual_seed(0))
    assert (seen[0] == 10).float().mean().item() == pytest.approx(0.25, abs=0.03)


def theirs(model, sampler, labels, z, noise, guidance):
    """The same generation by diffusers' scheduler: same model, noise and steps."""
    import diffusers

    classes = {"ddpm": "DDPM", "ddim": "DDIM", "dpmpp_2m": "DPMSolverMultistep", "euler": "EulerDiscrete"}
    options = {"clip_sample": False} if sampler in ("ddpm", "ddim") else {}
    scheduler = getattr(diffusers, f"{classes[sampler]}Scheduler")(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        **options,
    )
    scheduler.set_timesteps(25)
    network, x, drawn = dit.guided(model, labels, guidance), z, iter(range(100))
    import diffusers.schedulers.scheduling_ddpm as module

    original, module.randn_tensor = module.randn_tensor, lambda *args, **kwargs: noise(next(drawn))
    try:
        for t in scheduler.timesteps:
            cond, uncond = network(x, t)
            x = scheduler.step(uncond + guidance * (cond - uncond), t, x).prev_sample
    finally:
        module.randn_tensor = original
    return ((x[:, 0] + 1) / 2).clamp(0, 1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_shipped_model_agrees_with_diffusers(sampler):
    pytest.importorskip("diffusers")
    model, seeds = registry.load("dit"), torch.arange(7, 17)
    want = theirs(
        model,
        sampler,
        torch.arange(10),
        randn(seeds, (1, 8, 8)),
        lambda i: randn(seeds, (1, 8, 8), offset=i + 1),
        3.0,
    )
    got = dit.generate(model, n=10, seed=7, sampler=sampler, guidance=3.0)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_shipped_weights_pass_their_gates():
    for gate in dit.evaluate(registry.load("dit"), n=200):
        assert gate.passed, gate

"""The samplers' tables against diffusers' schedulers, the sums that its test-suite publishes, and closed
forms."""

import math

import numpy as np
import pytest
import torch

from hexad.sampling import denoise, schedules
from hexad_kernels import step

diffusers = pytest.importorskip("diffusers")

SHAPE = (4, 1, 8, 8)


def images(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x, t):
    """A fixed nonlinear stand-in for a trained model, with an unconditional twin."""
    wave = torch.sin(x + t / 300)
    return 0.6 * x + 0.4 * wave, 0.7 * x - 0.2 * wave


def guided(x, t, guidance):
    cond, uncond = network(x, t)
    return uncond + guidance * (cond - uncond)


def theirs(scheduler, steps, z, guidance, noise=None, **options):
    scheduler.set_timesteps(steps)
    x = z * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        output = guided(scheduler.scale_model_input(x, t), t, guidance)
        if noise is not None and "eta" in options:
            options["variance_noise"] = noise(i)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


BETAS = {"linear": schedules.linear_alphas(), "squaredcos_cap_v2": schedules.cosine_alphas()}
COMMON = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}


@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("steps", [1, 7, 25])
def test_dpmpp_2m_agrees_with_diffusers(beta_schedule, steps):
    abar = BETAS[beta_schedule]
    times = schedules.spaced(1000, steps)
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule=beta_schedule, **COMMON)
    want = theirs(scheduler, steps, images(0), 3.0)
    assert scheduler.timesteps.tolist() == times.tolist()
    plan = schedules.dpmpp_2m(abar, times, prediction="v", guidance=3.0)
    got = denoise.sample_dpmpp_2m(network, images(0), plan)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_ddim_agrees_with_diffusers(beta_schedule, eta, clip):
    scheduler = diffusers.DDIMScheduler(beta_schedule=beta_schedule, clip_sample=clip == 1.0, **COMMON)
    want = theirs(scheduler, 25, images(0), 3.0, noise=lambda i: images(i + 1), eta=eta)
    times = schedules.spaced(1000, 25)
    plan = schedules.ddim(BETAS[beta_schedule], times, prediction="v", guidance=3.0, clip=clip, eta=eta)
    got = denoise.sample_ddim(network, images(0), plan, lambda i: images(i + 1))
    assert plan.stochastic == (eta > 0)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_agrees_with_diffusers(beta_schedule, variance, monkeypatch):
    drawn = iter(range(1, 100))
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: images(next(drawn)))
    options = {
        "beta_schedule": beta_schedule,
        "variance_type": f"fixed_{variance}",
        "timestep_spacing": "leading",
    }
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", **options)
    want = theirs(scheduler, 25, images(0), 3.0)
    times = schedules.spaced(1000, 25, "leading")
    plan = schedules.ddpm(
        BETAS[beta_schedule], times, prediction="v", guidance=3.0, clip=1.0, variance=variance
    )
    got = denoise.sample_ddpm(network, images(0), plan, lambda i: images(i + 1))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_euler_agrees_with_diffusers_and_with_ddim():
    abar, times = BETAS["linear"], schedules.spaced(1000, 20)
    z = images(0)
    scheduler = diffusers.EulerDiscreteScheduler(**COMMON)
    scheduler.set_timesteps(20)
    plan = schedules.euler(abar, times, prediction="v", guidance=3.0)
    want = theirs(scheduler, 20, z * plan.prior / scheduler.init_noise_sigma, 3.0)
    got = denoise.sample_euler(network, z, plan)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    # The same ODE step in other coordinates.
    ddim = denoise.sample_ddim(network, z, schedules.ddim(abar, times, prediction="v", guidance=3.0))
    torch.testing.assert_close(got, ddim, rtol=0, atol=1e-4)


@pytest.mark.parametrize("clip", [1.5, math.inf])
def test_flow_euler_agrees_with_diffusers(clip):
    sigmas = np.linspace(1, 1e-3, 12)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    want = images(0)
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        velocity = guided(want, t, 2.0)
        if math.isfinite(clip):
            velocity = (want - (want - sigma * velocity).clamp(-clip, clip)) / sigma
        want = scheduler.step(velocity, t, want).prev_sample
    got = denoise.sample_flow_euler(network, images(0), schedules.flow_euler(sigmas, guidance=2.0, clip=clip))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 10, 25, 30, 999, 1000])
def test_spacings_are_those_of_diffusers(spacing, steps):
    scheduler = diffusers.DDPMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert schedules.spaced(1000, steps, spacing).tolist() == scheduler.timesteps.tolist()


# The fixture and the sums of diffusers' own scheduler tests: sum or mean of |x| after the last step.
RAMP = (torch.arange(768, dtype=torch.float32) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)
LINEAR = schedules.linear_alphas()


def ramp_model(x, t):
    return x * t / (t + 1), None


@pytest.mark.parametrize(("prediction", "total"), [("eps", 172.0067), ("v", 52.5302)])
def test_published_ddim_sums(prediction, total):
    plan = schedules.ddim(LINEAR, schedules.spaced(1000, 10, "leading"), prediction=prediction, clip=1.0)
    assert denoise.sample_ddim(ramp_model, RAMP, plan).abs().sum().item() == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(("to_one", "total"), [(True, 149.8295), (False, 149.0784)])
def test_published_ddim_sums_by_final_level(to_one, total):
    abar = schedules.linear_alphas(first=0.01)
    plan = schedules.ddim(
        abar, schedules.spaced(1000, 10, "leading"), clip=1.0, final=1.0 if to_one else float(abar[0])
    )
    assert denoise.sample_ddim(ramp_model, RAMP, plan).abs().sum().item() == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(("prediction", "total"), [("eps", 258.9606), ("v", 202.0296)])
def test_published_ddpm_sums(prediction, total):
    generator = torch.Generator().manual_seed(0)
    plan = schedules.ddpm(LINEAR, schedules.spaced(1000, 1000), prediction=prediction, clip=1.0)
    got = denoise.sample_ddpm(ramp_model, RAMP, plan, lambda i: torch.randn(RAMP.shape, generator=generator))
    assert got.abs().sum().item() == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize(("prediction", "mean"), [("eps", 0.3301), ("v", 0.2251)])
def test_published_dpmpp_2m_means(prediction, mean):
    times = schedules.spaced(1000, 10, "open")
    plan = schedules.dpmpp_2m(
        LINEAR, times, prediction=prediction, final="sigma_min", lower_order_final=False
    )
    assert denoise.sample_dpmpp_2m(ramp_model, RAMP, plan).abs().mean().item() == pytest.approx(
        mean, abs=1e-3
    )


@pytest.mark.parametrize(("prediction", "total"), [("eps", 10.0807), ("v", 0.0002)])
def test_published_euler_sums(prediction, total):
    abar = schedules.linear_alphas(1100)
    times = np.linspace(0, 1099, 10)[::-1]
    plan = schedules.euler(abar, times, prediction=prediction)
    x, largest = RAMP, math.sqrt(1 / abar[-1] - 1)
    x = x * largest
    for i, t in enumerate(plan.timesteps):
        # Their test hands step() the scaled sample, which no pipeline does.
        sigma = np.interp(float(t), np.arange(1100), np.sqrt(1 / abar - 1))
        x = x / math.sqrt(sigma**2 + 1)
        (x,) = step(plan.table, i, x, ramp_model(x, t)[0])
    assert x.abs().sum().item() == pytest.approx(total, abs=1e-2)


def gaussian_velocity(abar, sd):
    """The exact v of data that are N(0, sd^2): E[alpha eps - s x0 | x] is linear in x."""

    def model(x, t):
        a = float(abar[int(t)])
        alpha, s = math.sqrt(a), math.sqrt(1 - a)
        return x * alpha * s * (1 - sd**2) / (a * sd**2 + 1 - a), None

    return model


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence_on_gaussian_data(sampler, order):
    """The flow of N(0, sd^2) data is known: x keeps its quantile of N(0, abar sd^2 + 1 - abar). It is
    followed from one inner level to another, as the jump to sigma = 0 is first order whatever the sampler."""
    abar, sd, start = schedules.linear_alphas(100_000, 1e-6, 2e-4)[2_000:], 0.5, 58_000
    lambdas = 0.5 * np.log(abar / (1 - abar))
    errors = []
    for steps in (20, 40):
        even = np.linspace(lambdas[start], lambdas[0], steps + 1)[:-1]
        times = np.searchsorted(-lambdas, -even)
        z, model = torch.ones(1, 1, 1, 1), gaussian_velocity(abar, sd)
        if sampler == "ddim":
            plan = schedules.ddim(abar, times, prediction="v", final=float(abar[0]))
            got = denoise.sample_ddim(model, z, plan)
        else:
            plan = schedules.dpmpp_2m(abar, times, prediction="v", final="sigma_min", lower_order_final=False)
            got = denoise.sample_dpmpp_2m(model, z, plan)
        spread = np.sqrt(abar * sd**2 + 1 - abar)
        errors.append(abs(got.item() - spread[0] / spread[times[0]]))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)


def test_traps():
    abar = LINEAR
    # The last step lands on p exactly, whatever lower_order_final says, as lambda is infinite there.
    row = schedules.dpmpp_2m(abar, schedules.spaced(1000, 25), lower_order_final=False).table[-1, 1]
    assert row.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    # A level that repeats is the identity, not 0 / 0.
    plan = schedules.dpmpp_2m(abar, [500, 200, 0], final="sigma_min", lower_order_final=False)
    assert plan.table[-1, 1].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert torch.isfinite(plan.table[:, 1:]).all()
    # Only fewer than 15 steps end at first order.
    for steps, second_order in ((14, False), (15, True)):
        plan = schedules.dpmpp_2m(abar, schedules.spaced(1000, steps, "open"), final="sigma_min")
        assert bool(plan.table[-1, 1, schedules.H1] != 0) == second_order
    # No noise after the last step, also when it is not at level 0.
    plan = schedules.ddpm(abar, schedules.spaced(1000, 10), variance="large")
    assert plan.table[-1, 1, schedules.Z] == 0
    assert plan.table[-2, 1, schedules.Z] > 0
    # Without a history the first step must not need one: step() would refuse.
    assert schedules.dpmpp_2m(abar, schedules.spaced(1000, 5)).table[0, 1, schedules.H1] == 0


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: schedules.spaced(1000, 0), "steps"),
        (lambda: schedules.spaced(1000, 1001), "steps"),
        (lambda: schedules.spaced(1000, 10, "even"), "spacing"),
        (lambda: schedules.ddim(LINEAR, [999], prediction="score"), "prediction"),
        (lambda: schedules.ddpm(LINEAR, [999], variance="learned"), "variance"),
        (lambda: schedules.dpmpp_2m(LINEAR, [999], final="none"), "final"),
        (lambda: schedules.ddim(LINEAR, [999], clip=0.0), "clip"),
    ],
)
def test_bad_input_names_the_argument(call, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        call()

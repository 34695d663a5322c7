"""diffusers' schedulers with hexad's step: its own tests' sums, and every output at every step against the host's."""

import inspect
import warnings

import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers: pip install hexad[diffusers]")

import diffusers as df

import hexad
from hexad.integrations import diffusers as hd

# The loops and sums of diffusers' own scheduler tests: a linear "model" from a fixed state.


def fixture():
    ramp = torch.arange(4 * 3 * 8 * 8) / (4 * 3 * 8 * 8)
    state, noise = (t.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) for t in (ramp, ramp.flip(-1)))
    return state, noise


def loop(scheduler, steps, start=None, **call):
    state, noise = fixture()
    if steps is None:
        times = scheduler.timesteps
    else:
        scheduler.set_timesteps(steps)
        times = scheduler.timesteps
    x = state * scheduler.init_noise_sigma
    if start is not None:
        times = times[start:]
        x = scheduler.add_noise(x, noise, times[:1])
        if hasattr(scheduler, "set_begin_index") and isinstance(scheduler, df.EulerDiscreteScheduler):
            scheduler.set_begin_index(start)
    generator = torch.manual_seed(0)
    if "generator" in inspect.signature(scheduler.step).parameters:
        call["generator"] = generator
    for t in times:
        x = scheduler.scale_model_input(x, t)
        x = scheduler.step(x * t / (t + 1), t, x, **call).prev_sample
    return x


LONG = {"num_train_timesteps": 1100}
MULTISTEP = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
SUMS = [
    (df.DDPMScheduler, {"variance_type": "fixed_small"}, None, None, 258.9606),
    (df.DDPMScheduler, {"prediction_type": "v_prediction"}, None, None, 202.0296),
    (df.DDIMScheduler, {}, 10, None, 172.0067),
    (df.DDIMScheduler, {"prediction_type": "v_prediction"}, 10, None, 52.5302),
    (df.DDIMScheduler, {"set_alpha_to_one": True, "beta_start": 0.01}, 10, None, 149.8295),
    (df.DDIMScheduler, {"set_alpha_to_one": False, "beta_start": 0.01}, 10, None, 149.0784),
    (df.DDIMScheduler, {}, 10, 8, 354.5418),
    (df.EulerDiscreteScheduler, LONG, 10, None, 10.0807),
    (df.EulerDiscreteScheduler, LONG | {"prediction_type": "v_prediction"}, 10, None, 0.0002),
    (df.EulerDiscreteScheduler, LONG | {"use_karras_sigmas": True}, 10, None, 124.5230),
    (df.EulerDiscreteScheduler, LONG, 10, 8, 57062.9297),
    (df.DPMSolverMultistepScheduler, MULTISTEP, 10, 5, 318.4111),
]
MEANS = [
    (df.DPMSolverMultistepScheduler, MULTISTEP, 0.3301),
    (df.DPMSolverMultistepScheduler, MULTISTEP | {"prediction_type": "v_prediction"}, 0.2251),
    (
        df.DPMSolverMultistepScheduler,
        MULTISTEP | {"prediction_type": "v_prediction", "use_karras_sigmas": True},
        0.2096,
    ),
    (df.DPMSolverMultistepScheduler, MULTISTEP | {"prediction_type": "v_prediction", "use_lu_lambdas": True}, 0.1554),
]


@pytest.mark.parametrize(("kind", "options", "steps", "start", "published"), SUMS)
def test_published_sums(kind, options, steps, start, published):
    scheduler = hexad.accelerate(kind(**options))
    assert hd.report(scheduler).replaced
    assert abs(loop(scheduler, steps, start).abs().sum().item() - published) < max(1e-2, 2e-7 * published)


def test_ddpm_from_noise_is_nearer_to_the_exact_sum_than_the_published_one():
    """1 - abar cancels near abar = 1: in float32, as the host computes, the published 387.9466 is 0.02 off."""
    exact = df.DDPMScheduler()
    exact.alphas_cumprod = torch.cumprod(1 - exact.betas.double(), 0)
    exact, published = loop(exact, None, 998).abs().sum().item(), 387.9466
    ours = loop(hexad.accelerate(df.DDPMScheduler()), None, 998).abs().sum().item()
    assert abs(ours - exact) < 2e-3 < 2e-2 < abs(published - exact)
    assert abs(ours - published) < 3e-2


@pytest.mark.parametrize(("kind", "options", "published"), MEANS)
def test_published_means(kind, options, published):
    scheduler = hexad.accelerate(kind(**options))
    assert hd.report(scheduler).replaced
    assert abs(loop(scheduler, 10).abs().mean().item() - published) < 1e-3


SCHEDULES = [
    (df.DDPMScheduler, {"timestep_spacing": "trailing", "variance_type": "fixed_large", "clip_sample": False}),
    (df.DDPMScheduler, {"timestep_spacing": "linspace", "variance_type": "fixed_small_log", "steps_offset": 1}),
    (df.DDPMScheduler, {"prediction_type": "sample", "beta_schedule": "sigmoid"}),
    (
        df.DDPMScheduler,
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    (df.DDIMScheduler, {"timestep_spacing": "trailing", "clip_sample_range": 0.7}),
    (df.DDIMScheduler, {"timestep_spacing": "linspace", "prediction_type": "sample", "clip_sample": False}),
    (df.DDIMScheduler, {"steps_offset": 1, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}),
    (
        df.DDIMScheduler,
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ),
    (df.EulerDiscreteScheduler, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (df.EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1, "final_sigmas_type": "sigma_min"}),
    (df.EulerDiscreteScheduler, {"use_exponential_sigmas": True, "prediction_type": "sample"}),
    (df.EulerDiscreteScheduler, {"interpolation_type": "log_linear"}),
    (df.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    (df.FlowMatchEulerDiscreteScheduler, {"use_karras_sigmas": True, "shift_terminal": 0.1}),
    (df.FlowMatchEulerDiscreteScheduler, {"invert_sigmas": True}),
    (df.DPMSolverMultistepScheduler, {}),
    (df.DPMSolverMultistepScheduler, {"solver_order": 1}),
    (df.DPMSolverMultistepScheduler, {"euler_at_final": True, "prediction_type": "sample"}),
    (df.DPMSolverMultistepScheduler, {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    (df.DPMSolverMultistepScheduler, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
]


@pytest.mark.parametrize("steps", [7, 30])
@pytest.mark.parametrize(("kind", "options"), SCHEDULES)
def test_every_step_is_the_hosts(kind, options, steps):
    """A random "model" from noise; every output that the host gives, at every step."""
    ours, theirs = hexad.accelerate(kind(**options)), kind(**options)
    assert hd.report(ours).replaced
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    x = y = torch.randn(2, 4, 6, 6)
    for s in (ours, theirs):
        s.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    for t in ours.timesteps:
        if hasattr(ours, "scale_model_input"):
            x, y = ours.scale_model_input(x, t), theirs.scale_model_input(y, t)
        m = torch.randn(2, 4, 6, 6)
        extra = [{"generator": g} for g in generators]
        if isinstance(ours, df.DDIMScheduler):
            extra = [e | {"eta": 0.7} for e in extra]
        got, want = ours.step(m, t, x, **extra[0]), theirs.step(m, t, y, **extra[1])
        assert type(got) is type(want) and got.keys() == want.keys()
        for key in want:
            scale = want[key].abs().max().item()
            torch.testing.assert_close(got[key], want[key], rtol=0, atol=2e-5 * max(scale, 1))
        x, y = got.prev_sample, want.prev_sample
    assert ours.step_index == theirs.step_index if hasattr(ours, "step_index") else True


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (df.DDIMScheduler(thresholding=True), "thresholding=True"),
        (df.DDPMScheduler(variance_type="learned_range"), "variance_type='learned_range'"),
        (df.DPMSolverMultistepScheduler(solver_order=3), "solver_order=3"),
        (df.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "algorithm_type='sde-dpmsolver++'"),
        (df.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "flow_prediction"),
        (df.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "stochastic_sampling=True"),
        (df.DDIMScheduler(rescale_betas_zero_snr=True), "divides by zero"),
        (df.UniPCMultistepScheduler(), "no fused step for UniPCMultistepScheduler"),
    ],
)
def test_unknown_options_are_left_with_the_reason(scheduler, reason):
    hexad.accelerate(scheduler)
    (why,) = hd.report(scheduler).left.values()
    assert reason in why and "step" not in vars(scheduler)
    assert reason in str(hd.report(scheduler))


def test_thresholding_is_left_and_keeps_its_published_mean():
    scheduler = df.DPMSolverMultistepScheduler(
        **MULTISTEP, thresholding=True, dynamic_thresholding_ratio=0.87, sample_max_value=0.5
    )
    assert abs(loop(hexad.accelerate(scheduler), 10).abs().mean().item() - 1.1364) < 1e-3


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (df.DDIMScheduler, {"use_clipped_model_output": True}),
        (df.EulerDiscreteScheduler, {"s_churn": 0.5, "generator": True}),
    ],
)
def test_calls_that_the_table_does_not_hold_go_to_the_host_with_a_warning(kind, call):
    ours, theirs = hexad.accelerate(kind()), kind()
    results = []
    for s in (ours, theirs):
        s.set_timesteps(5)
        x = torch.ones(1, 2, 4, 4)
        t = s.timesteps[0]
        generator = {"generator": torch.Generator().manual_seed(0)} if "generator" in call else {}
        m = torch.full_like(s.scale_model_input(x, t), 0.3)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            hd.schedulers._warned.clear()
            results.append(s.step(m, t, x, **(call | generator)).prev_sample)
        assert any("is not fused" in str(w.message) for w in seen) == (s is ours)
    assert torch.equal(*results)

"""diffusers' schedulers with hexad's step: its own tests' sums, and every output at every step against the host's."""

import inspect
import warnings

import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers: pip install hexad[diffusers]")

import diffusers as df

import hexad
from hexad.integrations import diffusers as hd
from hexad.integrations.diffusers_rows import warned

# The loops and sums of diffusers' own scheduler tests: a linear "model" from a fixed state.


def fixture():
    ramp = torch.arange(4 * 3 * 8 * 8) / (4 * 3 * 8 * 8)
    state, noise = (t.reshape(3, 8, 8, 4).permute(3, 0, 1, 2) for t in (ramp, ramp.flip(-1)))
    return state, noise


def loop(scheduler, steps, start=None, *, told=False, **call):
    """steps: how many, or which; None: as constructed. told: step learns the timestep that follows."""
    state, noise = fixture()
    if isinstance(steps, list):
        scheduler.set_timesteps(timesteps=steps)
    elif steps is not None:
        scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    x = state * scheduler.init_noise_sigma
    if start is not None:
        start *= scheduler.order
        times = times[start:]
        x = scheduler.add_noise(x, noise, times[:1])
        if isinstance(scheduler, SIGMAS_BY_INDEX):
            scheduler.set_begin_index(start)
    generator = torch.manual_seed(0)
    if "generator" in inspect.signature(scheduler.step).parameters:
        call["generator"] = generator
    for i, t in enumerate(times):
        if told:
            call["prev_timestep"] = times[i + 1] if i + 1 < len(times) else None
        scaled = scheduler.scale_model_input(x, t)
        # Most of the host's tests go on from the scaled state, which a pipeline would not.
        x = x if isinstance(scheduler, PLAIN_STATE) else scaled
        x = scheduler.step(scaled * t / (t + 1), t, x, **call).prev_sample
    return x


SIGMAS_BY_INDEX = (df.EulerDiscreteScheduler, df.EulerAncestralDiscreteScheduler, df.HeunDiscreteScheduler)
PLAIN_STATE = (df.EDMEulerScheduler, df.CMStochasticIterativeScheduler)
LONG = {"num_train_timesteps": 1100}
HEUN = {"num_train_timesteps": 1100, "beta_start": 1e-4, "beta_end": 0.02}
CONSISTENCY = {"num_train_timesteps": 201, "sigma_min": 0.002, "sigma_max": 80.0}
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
    (df.EulerAncestralDiscreteScheduler, LONG, 10, None, 152.3192),
    (df.EulerAncestralDiscreteScheduler, LONG | {"prediction_type": "v_prediction"}, 10, None, 108.4439),
    (df.EulerAncestralDiscreteScheduler, LONG, 10, 8, 56163.0508),
    (df.HeunDiscreteScheduler, HEUN, 10, None, 0.1233),
    (df.HeunDiscreteScheduler, HEUN | {"prediction_type": "v_prediction"}, 10, None, 4.6934e-07),
    (df.HeunDiscreteScheduler, HEUN | {"use_karras_sigmas": True}, 10, None, 0.00015),
    (df.HeunDiscreteScheduler, HEUN, 10, 8, 75074.8906),
    (df.EDMEulerScheduler, {"num_train_timesteps": 256}, 10, None, 34.1855),
    (df.LCMScheduler, {}, 1, None, 18.7097),
    (df.LCMScheduler, {}, 10, None, 197.7616),
    (df.CMStochasticIterativeScheduler, CONSISTENCY, 1, None, 192.7614),
    (df.CMStochasticIterativeScheduler, CONSISTENCY, [106, 0], None, 347.6357),
    (df.CMStochasticIterativeScheduler, CONSISTENCY, 10, 8, 763.9186),
    (df.UniPCMultistepScheduler, {"final_sigmas_type": "sigma_min"}, 10, 8, 315.5757),
    (df.DEISMultistepScheduler, {}, 10, 8, 315.3016),
]
UNIPC = {"final_sigmas_type": "sigma_min"}
MEANS = [
    (df.DPMSolverMultistepScheduler, MULTISTEP, 0.3301),
    (df.DPMSolverMultistepScheduler, MULTISTEP | {"prediction_type": "v_prediction"}, 0.2251),
    (
        df.DPMSolverMultistepScheduler,
        MULTISTEP | {"prediction_type": "v_prediction", "use_karras_sigmas": True},
        0.2096,
    ),
    (df.DPMSolverMultistepScheduler, MULTISTEP | {"prediction_type": "v_prediction", "use_lu_lambdas": True}, 0.1554),
    (df.UniPCMultistepScheduler, UNIPC, 0.2464),
    (df.UniPCMultistepScheduler, UNIPC | {"prediction_type": "v_prediction"}, 0.1014),
    (df.UniPCMultistepScheduler, UNIPC | {"prediction_type": "v_prediction", "use_karras_sigmas": True}, 0.1966),
    (df.DEISMultistepScheduler, {}, 0.23916),
    (df.DEISMultistepScheduler, {"prediction_type": "v_prediction"}, 0.091),
]
UNCLIP = [(None, 252.2682), (25, 258.2045)]
TCD = [(1, 29.8715), (10, 181.2040)]


@pytest.mark.parametrize(("kind", "options", "steps", "start", "published"), SUMS)
def test_published_sums(kind, options, steps, start, published):
    scheduler = hexad.accelerate(kind(**options))
    assert hd.report(scheduler).replaced
    # The host allows 1e-2, which a sum near 0 would keep whatever it is.
    allowed = max(1e-2, 2e-7 * published) if published > 0.1 else 1e-3
    assert abs(loop(scheduler, steps, start).abs().sum().item() - published) < allowed


def test_ddpm_from_noise_is_nearer_to_the_exact_sum_than_the_published_one():
    """1 - abar cancels near abar = 1: in float32, as the host computes, the published 387.9466 is 0.02 off."""
    exact = df.DDPMScheduler()
    exact.alphas_cumprod = torch.cumprod(1 - exact.betas.double(), 0)
    exact, published = loop(exact, None, 998).abs().sum().item(), 387.9466
    ours = loop(hexad.accelerate(df.DDPMScheduler()), None, 998).abs().sum().item()
    assert abs(ours - exact) < 2e-3 < 2e-2 < abs(published - exact)
    assert abs(ours - published) < 3e-2


@pytest.mark.parametrize(("steps", "published"), UNCLIP)
def test_published_sums_of_unclip(steps, published):
    scheduler = hexad.accelerate(df.UnCLIPScheduler())
    assert hd.report(scheduler).replaced
    assert abs(loop(scheduler, steps, told=steps is not None).abs().sum().item() - published) < 1e-2


@pytest.mark.parametrize(("steps", "published"), TCD)
def test_published_sums_of_tcd(steps, published):
    scheduler = hexad.accelerate(df.TCDScheduler())
    assert hd.report(scheduler).replaced
    assert abs(loop(scheduler, steps, eta=0.0).abs().sum().item() - published) < 1e-2


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
    (df.EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (df.EDMEulerScheduler, {"prediction_type": "v_prediction", "sigma_schedule": "exponential"}),
    (df.HeunDiscreteScheduler, {"clip_sample": True, "prediction_type": "sample"}),
    (df.HeunDiscreteScheduler, {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    (df.LCMScheduler, {"clip_sample": True, "prediction_type": "v_prediction"}),
    (df.LCMScheduler, {"prediction_type": "sample", "set_alpha_to_one": False}),
    (df.TCDScheduler, {"prediction_type": "v_prediction"}),
    (df.TCDScheduler, {"prediction_type": "sample"}),
    (df.CMStochasticIterativeScheduler, {"s_noise": 0.8}),
    (df.CMStochasticIterativeScheduler, {"clip_denoised": False, "sigma_max": 40.0}),
    (df.UnCLIPScheduler, {"prediction_type": "sample", "clip_sample_range": 0.8}),
    (df.DEISMultistepScheduler, {"solver_order": 3}),
    (df.DEISMultistepScheduler, {"solver_order": 1, "prediction_type": "sample"}),
    (df.DEISMultistepScheduler, {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    (df.UniPCMultistepScheduler, {}),
    (df.UniPCMultistepScheduler, {"solver_order": 3}),
    (df.UniPCMultistepScheduler, {"solver_order": 1, "prediction_type": "sample"}),
    (df.UniPCMultistepScheduler, {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    (df.UniPCMultistepScheduler, {"disable_corrector": [0, 3], "lower_order_final": False} | UNIPC),
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
        random = "generator" in inspect.signature(theirs.step).parameters
        extra = [{"generator": g} for g in generators] if random else [{}, {}]
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
        (df.PNDMScheduler(), "no fused step for PNDMScheduler"),
        (df.UniPCMultistepScheduler(predict_x0=False), "predict_x0=False"),
        (df.UniPCMultistepScheduler(solver_p=df.DDIMScheduler()), "solver_p="),
        (df.UniPCMultistepScheduler(lower_order_final=False), "divides by zero"),
        (df.UnCLIPScheduler(variance_type="learned_range"), "variance_type='learned_range'"),
        (df.EulerAncestralDiscreteScheduler(prediction_type="sample"), "prediction_type='sample'"),
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
        (df.EDMEulerScheduler, {"s_churn": 0.5, "generator": True}),
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
            warned.clear()
            results.append(s.step(m, t, x, **(call | generator)).prev_sample)
        assert any("is not fused" in str(w.message) for w in seen) == (s is ours)
    assert torch.equal(*results)

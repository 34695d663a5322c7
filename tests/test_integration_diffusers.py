"""diffusers: tiny random models and pipelines, the host alone against the host with hexad."""

import copy
import warnings

import pytest
import torch

pytest.importorskip("diffusers", reason="needs diffusers: pip install hexad[diffusers]")

import diffusers as df
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

import hexad
from hexad.integrations import diffusers as hd
from hexad.integrations import host
from tests.diffusers_models import MODELS, dit, flux, flux_inputs, sd3, unet, vae


@pytest.fixture(autouse=True)
def quiet_host():
    df.utils.logging.set_verbosity_error()
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
def test_models_give_the_hosts_outputs_and_come_back(name):
    build, draw = MODELS[name]
    model, inputs = build(), draw()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        want = model(**inputs).sample
        processors = [m.processor for m in model.modules() if hasattr(m, "set_processor")]
        assert hexad.accelerate(model) is model
        found = hd.report(model)
        got = model(**inputs).sample
        assert found.replaced and not found.left, found
        assert len(found.replaced) == sum(
            isinstance(m.processor, object) for m in model.modules() if hasattr(m, "set_processor")
        )
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        assert model.state_dict().keys() == weights.keys()
        hd.restore(model)
        assert [m.processor for m in model.modules() if hasattr(m, "set_processor")] == processors
        assert torch.equal(model(**inputs).sample, want)
    assert not hd.report(model).replaced


def test_the_kernels_are_what_runs(monkeypatch):
    import hexad_kernels as hk
    from hexad.integrations import diffusers_rows

    calls = []
    for op in ("attention", "step"):
        run = getattr(hk, op)
        counted = lambda *a, op=op, run=run, **k: calls.append(op) or run(*a, **k)  # noqa: E731
        monkeypatch.setattr(hk, op, counted)
        monkeypatch.setattr(diffusers_rows, "step", counted)
    pipe = hexad.accelerate(df.DDIMPipeline(unet(), df.DDIMScheduler()))
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=3, output_type="np")
    attentions = sum(what.startswith("AttnProcessor") for what in hd.report(pipe).replaced.values())
    assert calls.count("step") == 3 and calls.count("attention") == 3 * attentions > 0


def images(pipe, **call):
    pipe.set_progress_bar_config(disable=True)
    return pipe(generator=torch.Generator().manual_seed(3), output_type="pt", **call).images.float()


def stable_diffusion_3():
    return df.StableDiffusion3Pipeline(
        transformer=sd3(),
        scheduler=df.FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


PIPES = {
    "ddim": (lambda: df.DDIMPipeline(unet(), df.DDIMScheduler()), {"num_inference_steps": 8, "eta": 0.3}),
    "ddpm": (lambda: df.DDPMPipeline(unet(), df.DDPMScheduler()), {"num_inference_steps": 12}),
    "dit": (
        lambda: df.DiTPipeline(dit(), vae(), df.DPMSolverMultistepScheduler()),
        {"class_labels": [1, 2], "num_inference_steps": 6},
    ),
    "dit_ddim": (
        lambda: df.DiTPipeline(dit(), vae(), df.DDIMScheduler()),
        {"class_labels": [1], "num_inference_steps": 6},
    ),
    "sd3": (
        stable_diffusion_3,
        {
            "prompt_embeds": torch.ones(1, 5, 16),
            "negative_prompt_embeds": torch.zeros(1, 5, 16),
            "pooled_prompt_embeds": torch.ones(1, 16),
            "negative_pooled_prompt_embeds": torch.zeros(1, 16),
            "num_inference_steps": 5,
            "height": 16,
            "width": 16,
        },
    ),
}


@pytest.mark.parametrize("name", PIPES)
def test_pipelines_give_the_hosts_images(name):
    build, call = PIPES[name]
    pipe = build()
    want = images(pipe, **call)
    assert hexad.accelerate(pipe) is pipe
    found = hd.report(pipe)
    assert "scheduler" in found.replaced and not found.left, found
    torch.testing.assert_close(images(pipe, **call), want, rtol=0, atol=1e-3)
    again = str(found)
    assert str(hd.report(hexad.accelerate(pipe))) == again
    hd.restore(pipe)
    assert "step" not in vars(pipe.scheduler) and torch.equal(images(pipe, **call), want)


def test_a_pipeline_saves_and_copies_as_before(tmp_path):
    pipe = hexad.accelerate(df.DDIMPipeline(unet(), df.DDIMScheduler()))
    want = images(pipe, num_inference_steps=3)
    twin = copy.deepcopy(pipe)
    assert twin.scheduler.step.__self__ is twin.scheduler
    hd.restore(twin)
    assert "step" not in vars(twin.scheduler) and "step" in vars(pipe.scheduler)
    torch.testing.assert_close(images(twin, num_inference_steps=3), want, rtol=0, atol=1e-3)
    pipe.save_pretrained(tmp_path)
    loaded = df.DDIMPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is df.DDIMScheduler and not hd.report(loaded).replaced


def test_a_new_scheduler_is_taken_by_another_call():
    pipe = hexad.accelerate(df.DDPMPipeline(unet(), df.DDPMScheduler()))
    pipe.scheduler = df.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    hexad.accelerate(pipe)
    assert "step" in vars(pipe.scheduler)
    assert hd.report(pipe).replaced["scheduler"].startswith("DPMSolverMultistepScheduler")


def test_unknown_processors_are_left_by_name():
    from diffusers.models.attention_processor import SlicedAttnProcessor

    model = unet()
    block = model.mid_block.attentions[0]
    block.set_processor(SlicedAttnProcessor(1))
    hexad.accelerate(model)
    left = hd.report(model).left
    assert left == {"UNet2DModel.mid_block.attentions.0": "hexad has no processor in place of SlicedAttnProcessor"}
    with pytest.raises(TypeError, match="pipe: got int"):
        hexad.accelerate(3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:hexad attention")  # float16 is served by the reference, which says so once
def test_half_precision_models_are_as_near_to_float32_as_the_hosts(dtype):
    pipe = df.DDIMPipeline(unet(), df.DDIMScheduler())
    exact = images(pipe, num_inference_steps=4, batch_size=4)
    pipe.to(dtype=dtype)
    theirs = images(pipe, num_inference_steps=4, batch_size=4)
    ours = images(hexad.accelerate(pipe), num_inference_steps=4, batch_size=4)
    assert (ours - exact).square().mean() <= 1.5 * (theirs - exact).square().mean()


# The dispatcher's backend.


def test_backend_by_its_public_ways():
    hd.register()
    hd.register()
    model, inputs = flux(), flux_inputs()
    with torch.no_grad():
        want = model(**inputs).sample
        with attention_backend("hexad"):
            torch.testing.assert_close(model(**inputs).sample, want, rtol=0, atol=1e-5)
        model.set_attention_backend("hexad")
        try:
            torch.testing.assert_close(model(**inputs).sample, want, rtol=0, atol=1e-5)
            torch._dynamo.reset()
            compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(**inputs).sample, want, rtol=0, atol=1e-5)
        finally:
            model.set_attention_backend("native")


def test_accelerated_models_compile():
    model, inputs = dit(), MODELS["dit"][1]()
    with torch.no_grad():
        want = model(**inputs).sample
        torch._dynamo.reset()
        compiled = torch.compile(hexad.accelerate(model), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(**inputs).sample, want, rtol=0, atol=1e-5)


MASKS = {
    "none": None,
    "padding": torch.tensor([[True] * 7, [True] * 4 + [False] * 3]),
    "additive padding": torch.tensor([[0.0] * 7, [0.0] * 4 + [-1e4] * 3]),
    "full": torch.rand(2, 4, 5, 7) < 0.7,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_backend_against_native(mask, kv_heads):
    hd.register()
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 7, kv_heads, 8), torch.randn(2, 7, kv_heads, 8)
    call = {"attn_mask": MASKS[mask], "scale": 0.4, "enable_gqa": kv_heads != 4}
    want = dispatch_attention_fn(q, k, v, **call, backend="native")
    torch.testing.assert_close(dispatch_attention_fn(q, k, v, **call, backend="hexad"), want, rtol=0, atol=1e-5)
    if mask == "none":
        want = dispatch_attention_fn(q, k, v, **call, is_causal=True, backend="native")
        got = dispatch_attention_fn(q, k, v, **call, is_causal=True, backend="hexad")
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_backend_refuses_before_computing():
    hd.register()
    q = torch.randn(1, 4, 2, 8)
    with pytest.raises(ValueError, match=r"dropout_p=0\.1"):
        dispatch_attention_fn(q, q, q, dropout_p=0.1, backend="hexad")
    with pytest.raises(ValueError, match="context parallelism"):
        dispatch_attention_fn(q, q, q, parallel_config=object(), backend="hexad")
    out, lse = dispatch_attention_fn(q, q, q, attention_kwargs={"return_lse": True}, backend="hexad")
    assert out.shape == q.shape and lse.shape == (1, 2, 4)


def test_gradients_pass_through():
    model, inputs = dit(), MODELS["dit"][1]()
    inputs["hidden_states"].requires_grad_()
    (want,) = torch.autograd.grad(model(**inputs).sample.square().sum(), inputs["hidden_states"])
    hexad.accelerate(model)
    (got,) = torch.autograd.grad(model(**inputs).sample.square().sum(), inputs["hidden_states"])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_host_of_another_version_warns_once(monkeypatch):
    monkeypatch.setattr(host, "version", lambda name: "0.99.1+local")
    monkeypatch.setattr(host, "_warned", set())
    with pytest.warns(UserWarning, match=r"diffusers >=0\.42,<0\.43; this is 0\.99\.1"):
        hd.register()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hd.register()


def wide_unet():
    return df.UNet2DModel(
        sample_size=32, block_out_channels=(64, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("winograd", [True, False])
def test_large_convolutions(winograd, monkeypatch):
    from hexad.integrations import convolutions

    runs = []
    run = convolutions.winograd
    monkeypatch.setattr(convolutions, "winograd", lambda *a: runs.append(1) or run(*a))
    model, x = wide_unet(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model(x, 7).sample
        hexad.accelerate(model, winograd=winograd)
        torch.testing.assert_close(model(x, 7).sample, want, rtol=0, atol=1e-4 if winograd else 1e-5)
    assert bool(runs) == winograd


def test_layers_are_replaced_and_accounted_for():
    model = hexad.accelerate(dit())
    found = hd.report(model)
    assert found.layers["DiTTransformer2DModel.transformer_blocks.0"] == "modulated block"
    assert found.layers["DiTTransformer2DModel.transformer_blocks.0.attn1.to_q"] == "linear"
    assert found.layers["DiTTransformer2DModel.transformer_blocks.0.ff.net.0"] == "linear and gelu_tanh"
    assert "stride" in found.kept["DiTTransformer2DModel.pos_embed.proj"]
    assert "x linear" in str(found) and "left 1 x a convolution" in str(found)
    hd.restore(model)
    assert all(not {"forward", "_hexad"} & vars(m).keys() for m in model.modules())


def test_times_and_their_sinusoids_may_change_in_place():
    from diffusers.models.embeddings import Timesteps

    host = Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)
    model = hexad.accelerate(dit())
    ours = next(m for m in model.modules() if isinstance(m, Timesteps))
    ours.num_channels, ours.downscale_freq_shift = 32, 0
    t = torch.tensor([7, 900])
    first = ours(t)
    assert torch.equal(first, host(t)) and ours(t) is first
    t.add_(5)
    assert torch.equal(ours(t), host(t)) and not torch.equal(first, host(t))
    ours(t).zero_()
    assert torch.equal(ours(t), host(t))
    ours.flip_sin_to_cos = host.flip_sin_to_cos = False
    assert torch.equal(ours(t), host(t)) and torch.equal(ours(t[:1]), host(t[:1]))
    with torch.inference_mode():
        assert torch.equal(ours(torch.tensor([3])), host(torch.tensor([3])))


@pytest.mark.parametrize(("weights", "off"), [("dense", 1e-5), ("int8", 0.05)])
@pytest.mark.parametrize("name", ["dit", "unet_text", "flux"])
def test_forms_of_weights(name, weights, off):
    build, draw = MODELS[name]
    model, inputs = build(), draw()
    with torch.no_grad():
        want = model(**inputs).sample
        got = hexad.accelerate(model, weights=weights)(**inputs).sample
    assert 0 <= (got - want).norm() / want.norm() < off
    with pytest.raises(ValueError, match="weights: got 'int3'"):
        hexad.accelerate(model, weights="int3")


def test_weights_loaded_later_are_used():
    build, draw = MODELS["unet_text"]
    model, other, inputs = build(), build(), draw()
    with torch.no_grad():
        hexad.accelerate(model)
        model(**inputs)
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(**inputs).sample, other(**inputs).sample, rtol=0, atol=1e-5)


def test_gradients_are_the_hosts():
    build, draw = MODELS["dit"]
    model, inputs = build(), draw()
    want = torch.autograd.grad(model(**inputs).sample.sum(), model.transformer_blocks[0].attn1.to_q.weight)[0]
    hexad.accelerate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.autograd.grad(model(**inputs).sample.sum(), model.transformer_blocks[0].attn1.to_q.weight)[0]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)

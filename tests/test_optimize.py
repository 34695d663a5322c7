"""hexad.optimize on models of transformers: same numbers, a full account, and a way back."""

import copy
import warnings

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import hexad  # noqa: E402
from hexad.integrations import layers, matching  # noqa: E402
from tests.host_models import CAUSAL, PAIRED, SIZES, VOCABULARY, build, gpt_oss, host_for, inputs_of  # noqa: E402

BERT = (transformers.BertForMaskedLM, transformers.BertConfig(**SIZES, intermediate_size=96))
MODELS = {**CAUSAL, **PAIRED, "bert": BERT}
WEIGHTS = ["dense", "packed"]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def prepared(name):
    model = build(*MODELS[name])
    model.set_attn_implementation(host_for(name))
    given = inputs_of(name)
    if name in PAIRED:
        given["decoder_input_ids"] = torch.randint(2, VOCABULARY, (2, 6))
    return model, given


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MODELS)
def test_same_logits_and_back(name, weights):
    model, given = prepared(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    host = model(**given).logits
    report = hexad.optimize(model, weights=weights)
    torch.testing.assert_close(model(**given).logits, host, rtol=1e-4, atol=1e-4)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    report.undo()
    assert torch.equal(model(**given).logits, host)
    assert model.config._attn_implementation == host_for(name)
    assert all(not {"forward", "_hexad"} & vars(m).keys() for m in model.modules())
    assert all(p.is_contiguous() for p in model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "t5"])
def test_generates_the_same_tokens(name):
    model, _ = prepared(name)
    given = inputs_of(name, "left" if name in CAUSAL else "right")
    host = model.generate(**given, max_new_tokens=10, do_sample=False)
    hexad.optimize(model)
    assert model.generate(**given, max_new_tokens=10, do_sample=False).tolist() == host.tolist()


def test_account_names_every_module_with_parameters():
    model, _ = prepared("gpt2")
    report = hexad.optimize(model, keep=["transformer.h.1.attn"])
    assert report.replaced["transformer.h.0.mlp"] == "feed-forward, gelu_tanh"
    assert report.replaced["transformer.ln_f"] == "layer norm"
    assert report.replaced["attention"] == "attention"
    assert report.left["transformer.h.1.attn.c_attn"] == "asked to be kept"
    assert "Embedding" in report.left["transformer.wte"]
    owners = {name for name, m in model.named_modules() if any(p is not None for p in m._parameters.values())}
    assert owners <= report.replaced.keys() | report.left.keys()
    assert "5 x layer norm" in str(report) and "asked to be kept" in str(report)


def test_what_a_norm_computes_decides():
    class Strange(torch.nn.Module):  # looks like an RMS norm
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(16))
            self.variance_epsilon = 1e-6

        def forward(self, x):
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.variance_epsilon)

    model = torch.nn.Sequential(Strange(), torch.nn.Linear(16, 8))
    report = hexad.optimize(model)
    assert report.left == {"0": "Strange: nothing here computes it"} and report.replaced == {"1": "linear"}
    llama, _ = prepared("llama")
    gemma, _ = prepared("gemma2")
    assert matching.match_norm(llama.model.norm).what == "rms norm"
    assert matching.match_norm(gemma.model.norm).what == "rms norm of 1 + weight"


def test_values_loaded_later_are_used():
    model, given = prepared("gpt2")
    other = build(*MODELS["gpt2"])
    for p in other.parameters():
        p.mul_(1.25)
    hexad.optimize(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(**given).logits, other(**given).logits, rtol=1e-4, atol=1e-4)


def test_copies_stand_on_their_own(tmp_path):
    model, given = prepared("gpt2")
    host = model(**given).logits
    hexad.optimize(model)
    copied = copy.deepcopy(model)
    for p in model.parameters():
        p.zero_()
    torch.testing.assert_close(copied(**given).logits, host, rtol=1e-4, atol=1e-4)
    copied.save_pretrained(tmp_path)
    saved = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    torch.testing.assert_close(saved(**given).logits, host, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_compile_fullgraph(name, weights):
    model, given = prepared(name)
    host = model(**given).logits
    hexad.optimize(model, weights=weights)
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**given).logits, host, rtol=1e-4, atol=1e-4)


def test_bfloat16():
    for name in ("llama", "gemma2", "bert"):
        model, given = prepared(name)
        exact = model(**given).logits
        model = model.bfloat16()
        off = (model(**given).logits.float() - exact).abs().mean()
        report = hexad.optimize(model)
        assert (model(**given).logits.float() - exact).abs().mean() <= 1.2 * off
        assert any("norm" in what for what in report.replaced.values())


def test_training_and_autocast_are_the_hosts():
    model, given = prepared("gpt2")
    given = {**given, "labels": given["input_ids"]}
    with torch.autocast("cpu", torch.bfloat16):
        host = model(**given).logits
    hexad.optimize(model, attention=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(**given).logits, host)
    layers._warn_of_gradients.cache_clear()
    with torch.enable_grad(), pytest.warns(UserWarning, match="gradients are recorded"):
        model(**given).loss.backward()
    assert model.transformer.h[0].mlp.c_fc.weight.grad.abs().sum() > 0
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**given)


def test_refusals_leave_the_model_as_it_was():
    model, _ = prepared("gpt2")
    with pytest.raises(ValueError, match="weights: got 'int3'"):
        hexad.optimize(model, weights="int3")
    with pytest.raises(ValueError, match="wants every parameter on the CPU"):
        hexad.optimize(torch.nn.Linear(4, 4, device="meta"))
    assert not any("forward" in vars(m) for m in model.modules())
    hexad.optimize(model)
    with pytest.raises(ValueError, match="optimized already"):
        hexad.optimize(model)


def test_attention_with_sinks_is_served():
    model = gpt_oss()
    report = hexad.optimize(model)
    assert "attention" in report.replaced and "attention" not in report.left
    model(**inputs_of("gpt_oss"))


@pytest.mark.parametrize(("weights", "off"), [("int8", 0.05), ("int4", 0.5)])
def test_quantised_weights(weights, off):
    for name in ("gpt2", "llama", "bert"):
        model, given = prepared(name)
        host = model(**given).logits
        report = hexad.optimize(model, weights=weights)
        error = (model(**given).logits - host).norm() / host.norm()
        assert 0 < error < off, (name, error)
        report.undo()
        assert torch.equal(model(**given).logits, host)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (None, {}, TypeError, "model: got NoneType, wants a torch.nn.Module"),
        ("gpt2", {"keep": "lm_head"}, TypeError, "keep: got 'lm_head', wants a list of module names"),
        ("gpt2", {"keep": ["head"]}, ValueError, "keep: got 'head', wants names of the model's modules"),
        ("gpt2", {"weights": 3}, ValueError, "weights: got 3, wants one of"),
    ],
)
def test_bad_arguments_leave_the_model(model, options, error, message):
    given = model and prepared(model)[0]
    with pytest.raises(error, match=message):
        hexad.optimize(given, **options)
    assert model is None or not any(hasattr(module, "_hexad") for module in given.modules())


def test_weights_that_are_not_numbers():
    model, given = prepared("gpt2")
    model.transformer.h[0].mlp.c_fc.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight: has NaN or infinity"):
        hexad.optimize(model, weights="int8")
    assert not any(hasattr(module, "_hexad") for module in model.modules())
    hexad.optimize(model)
    assert model(**given).logits.isnan().any()


BLOCKS = {"gpt2": "decoder block", "llama": "decoder block", "mistral": "decoder block", "bert": "self-attention"}


@pytest.mark.parametrize("name", BLOCKS)
def test_known_blocks_run_whole(name, monkeypatch):
    model, given = prepared(name)
    host = model(**given).logits
    report = hexad.optimize(model)
    assert list(report.replaced.values()).count(BLOCKS[name]) == 2

    def forbidden(*args, **kwargs):
        raise AssertionError("the host's attention ran")

    for module in model.modules():
        if type(module).__name__ in ("GPT2Attention", "LlamaAttention", "MistralAttention"):
            monkeypatch.setattr(type(module), "forward", forbidden)
    torch.testing.assert_close(model(**given).logits, host, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [None, "left"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
def test_blocks_generate_the_same_tokens(name, search, padded):
    model, _ = prepared(name)
    given = inputs_of(name, padded)
    for cache in ("dynamic", "static"):
        options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache, **search}
        host = model.generate(**given, **options)
        report = hexad.optimize(model)
        assert model.generate(**given, **options).tolist() == host.tolist()
        report.undo()


def test_another_attention_or_a_hook_inside_takes_blocks_apart():
    model, given = prepared("llama")
    host = model(**given).logits
    seen = []
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda *_: seen.append("attention"))
    report = hexad.optimize(model)
    assert list(report.replaced.values()).count("decoder block") == 1
    torch.testing.assert_close(model(**given).logits, host, rtol=1e-4, atol=1e-4)
    assert seen == ["attention"]
    hook.remove()
    model.set_attn_implementation("eager")
    assert model(**given, output_attentions=True).attentions[1] is not None


def test_asking_for_attentions_is_refused_by_a_whole_block():
    model, given = prepared("llama")
    hexad.optimize(model)
    with pytest.raises(ValueError, match="output_attentions"):
        model(**given, output_attentions=True)
    assert len(model(**given, output_hidden_states=True).hidden_states) == 3


def test_a_dense_model_keeps_its_blocks_whole():
    model, given = prepared("llama")
    host = model(**given).logits
    report = hexad.optimize(model, weights="dense")
    assert "decoder block" in report.replaced.values()
    torch.testing.assert_close(model(**given).logits, host, rtol=1e-4, atol=1e-4)


def test_parts_of_a_joined_product_keep_their_panels():
    model, _ = prepared("llama")
    hexad.optimize(model)
    attention = model.model.layers[0].self_attn
    whole = model.model.layers[0]._hexad.packed.panels
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        panels = part._hexad.packed.panels
        assert panels.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert torch.equal(part._hexad.packed.unpack(), part.weight)


def test_gradients_of_any_parameter_are_the_hosts():
    model, given = prepared("llama")
    model.requires_grad_(False)
    model.model.layers[0].self_attn.k_proj.weight.requires_grad_(True)
    hexad.optimize(model)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(**given, use_cache=False).logits.sum().backward()
    assert model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum() > 0


def test_qwen2_block_with_biases():
    sizes = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 96, "pad_token_id": 0, "eos_token_id": None}
    model = build(transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**sizes))
    for layer in model.model.layers:
        layer.self_attn.k_proj.bias.normal_()
    given = inputs_of("qwen2", "left")
    host = model.generate(**given, max_new_tokens=8, do_sample=False)
    report = hexad.optimize(model)
    assert list(report.replaced.values()).count("decoder block") == 2
    assert model.generate(**given, max_new_tokens=8, do_sample=False).tolist() == host.tolist()
    model.model.layers[0].self_attn.k_proj.bias.add_(1)
    changed = model(**given).logits
    report.undo()
    torch.testing.assert_close(changed, model(**given).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_rotation_follows_its_tables(batch):
    """Half tables are kept from one layer to the next, as long as they are the host's own memory."""
    from hexad.integrations import blocks

    x, angles = torch.randn(2, 3, 5, 8), torch.randn(batch, 5, 4)
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1) for f in (torch.cos, torch.sin))
    for _ in range(2):
        turned = torch.cat([-x[..., 4:], x[..., :4]], dim=-1)
        expected = x * cos[:, None] + turned * sin[:, None]
        for _ in range(2):
            torch.testing.assert_close(blocks._rotated(x, cos, sin), expected)
        cos.mul_(0.5)
    expanded = [t[:1].expand(2, -1, -1) for t in (cos, sin)]
    expected = x * expanded[0][:, None] + turned * expanded[1][:, None]
    torch.testing.assert_close(blocks._rotated(x, *expanded), expected)
    expanded[0][0].mul_(2)
    expected = x * expanded[0][:, None] + turned * expanded[1][:, None]
    torch.testing.assert_close(blocks._rotated(x, *expanded), expected)


def norm_with_bias():
    norm = torch.nn.LayerNorm(32)
    norm.bias.data.normal_()
    return norm


@pytest.mark.parametrize(("make", "name"), [(lambda: torch.nn.Linear(32, 16), "weight"), (norm_with_bias, "bias")])
def test_a_parametrized_weight_counts_from_then_on(make, name):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    net = torch.nn.Sequential(make()).eval()
    x = torch.randn(3, 32)
    before, other = net(x), net[0].bias.clone() if name == "weight" else 0
    hexad.optimize(net)
    torch.nn.utils.parametrize.register_parametrization(net[0], name, Doubled())
    expected = 2 * before - other if name == "weight" else before + net[0].bias / 2
    torch.testing.assert_close(net(x), expected)

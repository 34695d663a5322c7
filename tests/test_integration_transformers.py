"""hexad as attention of Hugging Face transformers, against the host's own on the same random weights."""

import warnings
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from transformers import AttentionMaskInterface  # noqa: E402

import hexad.integrations.transformers as integration  # noqa: E402
from hexad.integrations.transformers import NAME, Unsupported  # noqa: E402
from tests.host_models import CAUSAL, PAIRED, SIZES, VOCABULARY, build, gpt_oss, host_for, inputs_of  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def registered():
    integration.register()
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


def both(model, name, call):
    results = []
    for implementation in (host_for(name), NAME):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        results.append(call(model))
    return results


@pytest.mark.parametrize("padded", [None, "left", "right"])
@pytest.mark.parametrize("name", CAUSAL)
def test_causal_logits(name, padded):
    model = build(*CAUSAL[name])
    given = inputs_of(name, padded)
    host, ours = both(model, name, lambda m: m(**given, use_cache=False).logits)
    seen = given.get("attention_mask", torch.ones(2, 9)).bool()
    torch.testing.assert_close(ours[seen], host[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [None, "right"])
@pytest.mark.parametrize("name", PAIRED)
def test_encoder_decoder_logits(name, padded):
    if name == "whisper" and padded:
        pytest.skip("Whisper's encoder takes no padding mask")
    model = build(*PAIRED[name])
    given = {**inputs_of(name, padded), "decoder_input_ids": torch.randint(2, VOCABULARY, (2, 6))}
    host, ours = both(model, name, lambda m: m(**given, use_cache=False).logits)
    torch.testing.assert_close(ours, host, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [None, "left", "right"])
def test_bert_logits(padded):
    config = transformers.BertConfig(**SIZES, intermediate_size=96)
    model = build(transformers.BertForMaskedLM, config)
    given = inputs_of("bert", padded)
    host, ours = both(model, "bert", lambda m: m(**given).logits)
    seen = given.get("attention_mask", torch.ones(2, 9)).bool()
    torch.testing.assert_close(ours[seen], host[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", [*CAUSAL, *PAIRED])
def test_generate(name, cache, search):
    model = build(*(CAUSAL | PAIRED)[name])
    given = inputs_of(name, "left" if name in CAUSAL else "right")
    options = {"max_new_tokens": 10, "do_sample": False, "cache_implementation": cache, **search}
    host, ours = both(model, name, lambda m: m.generate(**given, **options))
    assert ours.tolist() == host.tolist()


@pytest.mark.parametrize("name", CAUSAL)
def test_generate_without_padding(name):
    model = build(*CAUSAL[name])
    given = inputs_of(name)
    for cache in ("dynamic", "static"):
        options = {"max_new_tokens": 10, "do_sample": False, "cache_implementation": cache}
        host, ours = both(model, name, lambda m: m.generate(**given, **options))  # noqa: B023
        assert ours.tolist() == host.tolist()


def test_own_four_dimensional_mask():
    model = build(*CAUSAL["llama"])
    ids = inputs_of("llama")["input_ids"]
    seen = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    seen |= torch.eye(9, dtype=torch.bool)
    for given in (seen, torch.where(seen, 0.0, torch.finfo(torch.float32).min)):
        host, ours = both(model, "llama", lambda m: m(ids, attention_mask=given, use_cache=False).logits)  # noqa: B023
        torch.testing.assert_close(ours, host, rtol=1e-4, atol=1e-4)


def test_packed_positions_are_masked():
    model = build(*CAUSAL["llama"])
    given = {
        "input_ids": inputs_of("llama")["input_ids"][:1],
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
    }
    host, ours = both(model, "llama", lambda m: m(**given, use_cache=False).logits)
    torch.testing.assert_close(ours, host, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*CAUSAL, *PAIRED])
def test_compile_fullgraph(name):
    model = build(*(CAUSAL | PAIRED)[name])
    given = inputs_of(name, "left" if name in CAUSAL else None)
    if name in PAIRED:
        given["decoder_input_ids"] = torch.randint(2, VOCABULARY, (2, 6))
    model.set_attn_implementation(NAME)
    eager = model(**given, use_cache=False).logits
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    logits = compiled(**given, use_cache=False).logits
    seen = given.get("attention_mask", torch.ones(eager.shape[:2])).bool()
    torch.testing.assert_close(logits[seen], eager[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_compiled_decoding_over_a_static_cache(name):
    model = build(*CAUSAL[name])
    given = inputs_of(name, "left")
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    model.set_attn_implementation(host_for(name))
    host = model.generate(**given, **options)
    model.set_attn_implementation(NAME)
    torch._dynamo.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert model.generate(**given, **options).tolist() == host.tolist()


def test_bfloat16():
    model = build(*CAUSAL["llama"]).bfloat16()
    given = inputs_of("llama", "left")
    host, ours = both(model, "llama", lambda m: m(**given, use_cache=False).logits)
    seen = given["attention_mask"].bool()
    torch.testing.assert_close(ours[seen], host[seen], rtol=0.05, atol=0.15)


def test_gradients():
    model = build(*CAUSAL["llama"])
    ids = inputs_of("llama")["input_ids"]

    def gradient(m):
        m.zero_grad()
        with torch.enable_grad():
            m(ids, labels=ids, use_cache=False).loss.backward()
        return m.model.layers[0].self_attn.k_proj.weight.grad.clone()

    host, ours = both(model, "llama", gradient)
    torch.testing.assert_close(ours, host, rtol=1e-3, atol=1e-5)


# What is refused


def test_removed_mask_function_is_an_error():
    model = build(*CAUSAL["llama"])
    model.set_attn_implementation(NAME)
    removed = AttentionMaskInterface._global_mapping.pop(NAME)
    try:
        with pytest.raises(RuntimeError, match="mask function of 'hexad' is not registered"):
            model(**inputs_of("llama", "left"))
        AttentionMaskInterface.register(NAME, transformers.masking_utils.flash_attention_mask)
        with pytest.raises(RuntimeError, match="not registered"):
            model(**inputs_of("llama", "left"))
    finally:
        AttentionMaskInterface.register(NAME, removed)
    model(**inputs_of("llama", "left"))


def test_sinks_of_gpt_oss():
    model = gpt_oss()
    for layer in model.model.layers:
        layer.self_attn.sinks.normal_()
    given = inputs_of("gpt_oss", "left")
    host, ours = both(model, "gpt_oss", lambda m: m(**given, use_cache=False).logits)
    seen = given["attention_mask"].bool()
    torch.testing.assert_close(ours[seen], host[seen], rtol=1e-4, atol=1e-4)


def test_sinks_in_half_precision():
    model = gpt_oss()
    for layer in model.model.layers:
        layer.self_attn.sinks.normal_()
    given = inputs_of("gpt_oss", "left")
    seen = given["attention_mask"].bool()
    model.set_attn_implementation("eager")
    exact = model(**given, use_cache=False).logits[seen]
    model.set_attn_implementation(NAME)
    for dtype in (torch.bfloat16, torch.float16):
        logits = model.to(dtype)(**given, use_cache=False).logits[seen]
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), exact, rtol=0.1, atol=0.1)


def sunk():
    model = gpt_oss()
    for layer in model.model.layers:
        layer.self_attn.sinks.normal_()
    return model


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_with_sinks(cache, search):
    model, given = sunk(), inputs_of("gpt_oss", "left")
    options = {"max_new_tokens": 10, "do_sample": False, "cache_implementation": cache, **search}
    host, ours = both(model, "gpt_oss", lambda m: m.generate(**given, **options))
    assert ours.tolist() == host.tolist()


def test_bert_compiles_whole():
    model = build(transformers.BertForMaskedLM, transformers.BertConfig(**SIZES, intermediate_size=96))
    model.set_attn_implementation(NAME)
    given = inputs_of("bert", "right")
    eager = model(**given).logits
    torch._dynamo.reset()
    logits = torch.compile(model.forward, fullgraph=True, backend="aot_eager")(**given).logits
    seen = given["attention_mask"].bool()
    torch.testing.assert_close(logits[seen], eager[seen], rtol=1e-4, atol=1e-4)


def test_training_dropout_is_refused():
    model = build(transformers.GPT2LMHeadModel, transformers.GPT2Config(n_embd=64, n_layer=1, n_head=4, vocab_size=99))
    model.set_attn_implementation(NAME)
    with pytest.raises(Unsupported, match="dropout"):
        model.train()(**inputs_of("gpt2"))


def test_attention_weights_are_refused():
    for name, (kind, config) in (CAUSAL | PAIRED).items():
        model = build(kind, config)
        model.set_attn_implementation(NAME)
        given = inputs_of(name)
        if name in PAIRED:
            given["decoder_input_ids"] = torch.randint(2, VOCABULARY, (2, 6))
        with pytest.raises(ValueError, match="output_attentions"):
            model(**given, output_attentions=True)


def test_continuous_batching_is_refused():
    model = build(*CAUSAL["llama"])
    model.set_attn_implementation(NAME)
    with pytest.raises(ValueError, match="hexad is not supported for continuous batching"):
        model.generate_batch(inputs=[[5, 6, 7]], generation_config=transformers.GenerationConfig(max_new_tokens=2))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"cache": object()}, "continuous batching"),
        ({"cu_seq_lens_q": torch.tensor([0, 3])}, "packed sequences"),
        ({"indices": torch.zeros(1, 3, 2)}, "indices"),
        ({"attention_mask": torch.ones(1, 3)}, "got 2 dimensions"),
    ],
)
def test_refusals_name_the_reason(asked, reason):
    q = torch.randn(1, 2, 3, 8)
    with pytest.raises(Unsupported, match=reason):
        integration.attend(torch.nn.Module(), q, q, q, **{"attention_mask": None, **asked})


def test_version_outside_the_range_warns_once(monkeypatch):
    from hexad.integrations import host

    monkeypatch.setattr(host, "version", lambda package: "6.1.0")
    monkeypatch.setattr(host, "_warned", set())
    with pytest.warns(UserWarning, match=r"transformers >=5\.\d+,<5\.\d+; this is 6\.1\.0"):
        integration.register()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        integration.register()


def test_page_and_example_are_one_and_run(capsys):
    root = Path(__file__).parent.parent
    example = (root / "examples/transformers_generate.py").read_text()
    assert f"```python\n{example}```" in (root / "docs/transformers.md").read_text()
    with torch.no_grad():
        exec(compile(example, "transformers_generate.py", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert printed.count("same tokens: True") == 3 and "feed-forward, gelu_tanh" in printed

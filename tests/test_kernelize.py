"""hexad's layers through the kernels package, against the host's own on the same random weights."""

from collections import Counter

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
kernels = pytest.importorskip("kernels", reason="the kernels package is not installed")
if not transformers.utils.is_kernels_available():
    pytest.skip("this transformers does not take this version of kernels", allow_module_level=True)

from hexad.integrations.kernelize import kernelize, mapping  # noqa: E402
from tests.host_models import CAUSAL, build, host_for, inputs_of  # noqa: E402

EXPECTED = {
    "gpt2": {},
    "llama": {"RMSNorm": 5, "SwiGLUMLP": 2, "rotary_pos_emb": 2},
    "qwen3": {"RMSNorm": 9, "SwiGLUMLP": 2, "rotary_pos_emb": 2},
    "mistral": {"RMSNorm": 5, "SwiGLUMLP": 2, "rotary_pos_emb": 2},
    "gemma2": {"GeGLUMLP": 2, "rotary_pos_emb": 2},  # its norm has no name for kernels
}


def restore(model):
    """Rotary functions are the host's, for every model of their file."""
    for module in model.modules():
        for function in getattr(module, "_kernel_funcs", {}).values():
            vars(function).pop("forward", None)


@pytest.mark.parametrize("padded", [None, "left"])
@pytest.mark.parametrize("name", CAUSAL)
def test_logits(name, padded):
    model = build(*CAUSAL[name])
    model.set_attn_implementation(host_for(name))
    given = inputs_of(name, padded)
    with torch.no_grad():
        host = model(**given).logits
        replaced = kernelize(model)
        try:
            assert Counter(replaced.values()) == EXPECTED[name]
            torch.testing.assert_close(model(**given).logits, host, rtol=1e-4, atol=1e-4)
            assert not any(hasattr(type(m), "kernel_layer_name") and "MLP" in type(m).__name__ for m in model.modules())
        finally:
            restore(model)


def test_compile_fullgraph():
    model = build(*CAUSAL["llama"])
    given = inputs_of("llama", "left")
    with torch.no_grad():
        host = model(**given, use_cache=False).logits
        kernelize(model)
        try:
            torch._dynamo.reset()
            compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(**given, use_cache=False).logits, host, rtol=1e-4, atol=1e-4)
        finally:
            restore(model)


def test_mapping_through_the_packages_own_call():
    model = build(*CAUSAL["llama"])
    given = inputs_of("llama")
    with torch.no_grad():
        host = model(**given).logits
        with kernels.use_kernel_mapping(mapping(), inherit_mapping=False):
            kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")
        try:
            assert model.model.norm.forward.__func__.__module__ == "hexad.integrations.kernelize"
            torch.testing.assert_close(model(**given).logits, host, rtol=1e-4, atol=1e-4)
        finally:
            restore(model)


def test_refusals():
    with pytest.raises(ValueError, match="in training mode"):
        kernelize(build(*CAUSAL["llama"]).train())
    with pytest.raises(ValueError, match="float16"):
        kernelize(build(*CAUSAL["llama"]).half())

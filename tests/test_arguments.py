"""Values of the wrong kind: every lane of the dispatch names the argument and says what it wants."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import hexad_kernels as hk
from hexad_kernels.gated_pixelcnn import weights_size

NETWORK = {"levels": 2, "channels": 4, "layers": 1, "kernel": 3}


def calls():
    x = torch.zeros
    heads, cache, lengths = x(1, 2, 4, 8), x(1, 2, 8, 8), torch.ones(1, dtype=torch.int32)
    places, seeds = torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    weights = x(weights_size(height=2, width=2, **NETWORK))
    return {
        "attention": {"q": heads, "k": heads, "v": heads},
        "decode": {"q": x(1, 2, 8), "k_cache": cache, "v_cache": cache, "lengths": lengths},
        "append_kv": {"k": heads, "v": heads, "k_cache": cache, "v_cache": cache, "lengths": lengths},
        "rope": {"x": heads, "cos": x(8, 4), "sin": x(8, 4)},
        "coupling": {"x": x(1, 4, 2), "shift": x(1, 2, 2), "log_scale": x(1, 2, 2)},
        "step": {"table": x(1, 4, 8), "index": 0, "x": x(2, 4), "model_output": x(2, 4)},
        "randn": {"seeds": seeds, "shape": (4,)},
        "norm": {"x": x(2, 8)},
        "sample": {"logits": x(2, 8), "seeds": seeds},
        "linear": {"x": x(2, 8), "weight": x(8, 8)},
        "linear_packed": {"x": x(2, 8), "panels": hk.pack(x(8, 8)).panels, "form": "float32", "rows": 8},
        "maskedconv": {"x": x(1, 2, 4, 4), "weight": x(2, 2, 3, 3), "row": 1},
        "gated_pixelcnn": {"image": places, "weights": weights, **NETWORK},
        "gated_pixelcnn_cache": {"image": places, "weights": weights, **NETWORK},
        "quantize": {"weight": x(8, 8), "form": "int8"},
        "winograd": {"x": x(1, 2, 4, 4), "taps": hk.pack_winograd(x(3, 2, 3, 3)), "outputs": 3},
    }


NUMBER, INTEGER, FLAG = "a number", "an integer", "True or False"
WRONG = [
    ("attention", "scale", "x", NUMBER),
    ("attention", "softcap", np.ones(2, np.float32), NUMBER),
    ("attention", "k", np.ones((1, 2, 4, 8), np.float32), "a torch.Tensor"),
    ("attention", "q", [1.0], "a torch.Tensor"),
    ("decode", "scale", torch.ones(2), NUMBER),
    ("append_kv", "interleaved", "x", FLAG),
    ("rope", "interleaved", 0.5, FLAG),
    ("coupling", "flip", "x", FLAG),
    ("coupling", "inverse", None, FLAG),
    ("coupling", "clamp", "2.0", NUMBER),
    ("attention", "v", torch.zeros(1, 2, 4, 8).to_sparse(), "dense"),
    ("step", "index", 0.0, INTEGER),
    ("step", "outputs", "x", INTEGER),
    ("step", "history", None, "a tuple"),
    ("randn", "shape", 4, "a sequence of integers"),
    ("randn", "shape", (1.5,), "integers"),
    ("randn", "offset", 2**70, INTEGER),
    ("norm", "eps", "x", NUMBER),
    ("norm", "num_groups", 2.0, INTEGER),
    ("sample", "temperature", "x", NUMBER),
    ("sample", "top_k", 1.5, INTEGER),
    ("sample", "top_p", None, NUMBER),
    ("sample", "logits", None, "a torch.Tensor"),
    ("linear", "weight", None, "a torch.Tensor"),
    ("linear_packed", "rows", "x", INTEGER),
    ("linear_packed", "rows", -1, "at least 0"),
    ("linear_packed", "panels", None, "a torch.Tensor"),
    ("maskedconv", "row", 0.5, INTEGER),
    ("gated_pixelcnn", "levels", "x", INTEGER),
    ("gated_pixelcnn", "temperature", [1.0], NUMBER),
    ("gated_pixelcnn_cache", "layers", 1.0, INTEGER),
    ("gated_pixelcnn_cache", "weights", None, "a torch.Tensor"),
    ("quantize", "weight", torch.zeros(8, 8, device="meta"), "numbers"),
    ("quantize", "weight", torch.zeros(8, 8).to_sparse(), "dense"),
    ("winograd", "outputs", 3.0, INTEGER),
    ("winograd", "outputs", -1, "at least 0"),
    ("winograd", "taps", None, "a torch.Tensor"),
]


@pytest.mark.parametrize("lane", ["eager", "reference", "gradients"])
@pytest.mark.parametrize(("name", "argument", "value", "wants"), WRONG)
def test_a_value_of_another_kind_is_named(name, argument, value, wants, lane):
    call = calls()[name] | {argument: value}
    if lane == "gradients" and name != "step":
        call |= {k: v.requires_grad_() for k, v in call.items() if k in ("q", "x") and isinstance(v, torch.Tensor)}
    forced = hk.backend("reference") if lane == "reference" else nullcontext()
    with forced, pytest.raises((TypeError, ValueError), match=rf"^{argument}: .*wants .*{wants}"):
        getattr(hk, name)(**call)


@pytest.mark.parametrize("name", ["attention", "coupling", "norm"])
def test_numbers_of_other_libraries_are_numbers(name):
    option = {"attention": "scale", "coupling": "clamp", "norm": "eps"}[name]
    call, found = calls()[name], []
    for value in (0.5, np.float32(0.5), torch.tensor(0.5)):
        out = getattr(hk, name)(**call, **{option: value})
        found.append(out if isinstance(out, torch.Tensor) else out[0])
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_wrong_level_leaves_the_cache():
    call = calls()["gated_pixelcnn"]
    cache = hk.gated_pixelcnn_cache(**call).fill_(7.0)
    call["image"] = torch.full((1, 2, 2), 2)
    with hk.backend("reference"), pytest.raises(ValueError, match="image: pixel 0 of row 0 is 2"):
        hk.gated_pixelcnn(cache=cache, **call)
    assert (cache == 7).all()


def test_expanded_images_and_caches_are_not_written():
    call = calls()["gated_pixelcnn"]
    places, seeds = call["image"].expand(2, 2, 2), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="image: its 2 entries of dimension 0 are one in memory"):
        hk.gated_pixelcnn(**call | {"image": places}, seeds=seeds)
    places = torch.zeros(2, 2, 2, dtype=torch.int64)
    cache = hk.gated_pixelcnn_cache(**call)[:1].expand(2, -1)
    with pytest.raises(ValueError, match="cache: its 2 entries of dimension 0 are one in memory"):
        hk.gated_pixelcnn(**call | {"image": places}, cache=cache, seeds=seeds)
    assert not places.any()


def test_packing_a_pixelcnn_names_what_is_wrong():
    with pytest.raises(TypeError, match="layers: got list, wants"):
        hk.pack_gated_pixelcnn([], None)
    with pytest.raises(TypeError, match="read_out: got None, wants"):
        hk.pack_gated_pixelcnn([hk.PixelCNNLayer(*[None] * 10)], None)

import hashlib
import json
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from hexad import checkpoint
from hexad.errors import CheckpointError


class Tied(nn.Module):
    """Tied weights, a buffer, and an integer buffer: what real models hold."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    checkpoint.save("tied", checkpoint.tensors_of(model), {"gates": []}, tmp_path)
    return model, tmp_path


def rewrite(folder, tensors):
    """Weights written behind the back of ``save``, with a manifest that vouches for them."""
    content = safetensors.torch.save(tensors)
    (folder / "tied.safetensors").write_bytes(content)
    manifest = {"name": "tied", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "tied.json").write_text(json.dumps(manifest))


def test_a_model_comes_back_bit_for_bit(saved):
    model, folder = saved
    other = Tied()
    manifest = checkpoint.load(other, "tied", folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert manifest["gates"] == [] and manifest["tools"]["torch"] == torch.__version__
    assert other.head.weight is other.embed.weight


def test_a_tied_tensor_is_stored_once(saved):
    _, folder = saved
    tensors, _ = checkpoint.read("tied", folder)
    assert "embed.weight" in tensors and "head.weight" not in tensors


def test_path_may_be_the_file_or_its_folder(saved):
    _, folder = saved
    by_folder, _ = checkpoint.read("tied", folder)
    by_file, _ = checkpoint.read("tied", folder / "tied.safetensors")
    assert by_folder.keys() == by_file.keys()


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated(saved, keep):
    _, folder = saved
    file = folder / "tied.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"tied\.safetensors.*truncated"):
        checkpoint.load(Tied(), "tied", folder)


@pytest.mark.parametrize("place", [0, 9, 0.5, -1])
def test_one_flipped_bit(saved, place):
    _, folder = saved
    file = folder / "tied.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tied\.safetensors.*sha256"):
        checkpoint.load(Tied(), "tied", folder)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_missing(saved, suffix):
    _, folder = saved
    (folder / f"tied.{suffix}").unlink()
    with pytest.raises(CheckpointError, match=rf"tied\.{suffix}: cannot be read"):
        checkpoint.read("tied", folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '"tied"', '{"name": "other"}', "\x00"])
def test_bad_manifest(saved, text):
    _, folder = saved
    (folder / "tied.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tied\.json"):
        checkpoint.read("tied", folder)


def test_another_models_keys_and_shapes_are_refused_before_anything_is_copied(saved):
    model, folder = saved
    good = {name: tensor.detach().clone() for name, tensor in checkpoint.tensors_of(model).items()}
    bad = {
        "missing norm.weight": {k: v for k, v in good.items() if k != "norm.weight"},
        "holds extra": good | {"extra": torch.ones(1)},
        "norm.bias has shape .5,., the model wants .4,.": good | {"norm.bias": torch.ones(5)},
    }
    for message, tensors in bad.items():
        rewrite(folder, tensors)
        other = Tied()
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(other, "tied", folder)
        assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_neither_saved_nor_loaded(saved, value):
    model, folder = saved
    tensors = {name: tensor.detach().clone() for name, tensor in checkpoint.tensors_of(model).items()}
    tensors["norm.weight"][2] = value
    before = (folder / "tied.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"norm\.weight holds NaN or infinity"):
        checkpoint.save("tied", tensors, {}, folder)
    assert (folder / "tied.safetensors").read_bytes() == before
    rewrite(folder, tensors)
    with pytest.raises(CheckpointError, match=r"norm\.weight holds NaN or infinity"):
        checkpoint.load(Tied(), "tied", folder)


def test_pickle_is_refused(saved):
    model, folder = saved
    file = folder / "tied.safetensors"
    torch.save(model.state_dict(), file)
    content = file.read_bytes()
    manifest = {"name": "tied", "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "tied.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.read("tied", folder)


@pytest.mark.parametrize("failing", [1, 2])
def test_save_writes_both_files_or_none(saved, monkeypatch, failing):
    _, folder = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    replace, calls = os.replace, []

    def break_off(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", break_off)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save("tied", {"embed.weight": torch.ones(3)}, {}, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_weights_over_4_mb_are_stored_in_bfloat16_and_loaded_as_float32(tmp_path):
    large = torch.randn(1_200_000, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(5)
    path = checkpoint.save("large", {"w": large, "counts": counts}, {}, tmp_path)
    assert path.stat().st_size <= checkpoint.LIMIT
    tensors, _ = checkpoint.read("large", tmp_path)
    assert tensors["w"].dtype == torch.float32 and torch.equal(tensors["w"], large.bfloat16().float())
    assert torch.equal(tensors["counts"], counts)
    with pytest.raises(CheckpointError, match="over the limit"):
        checkpoint.save("huge", {"w": torch.zeros(2_100_000)}, {}, tmp_path)


def test_another_config_is_refused(tmp_path):
    from hexad.models.classifier import Classifier, Config

    model = Classifier(Config(width=4))
    checkpoint.save("c", checkpoint.tensors_of(model), {"config": checkpoint.config_of(model)}, tmp_path)
    checkpoint.load(Classifier(Config(width=4)), "c", tmp_path)
    with pytest.raises(CheckpointError, match="made for config"):
        checkpoint.load(Classifier(Config(width=4, dropout=0.5)), "c", tmp_path)


def test_rename_by_a_keys_table():
    keys = {r"h\.(\d+)\.ln_1\.(weight|bias)": r"blocks.\1.norm.\2", r"wte\.weight": "embed.weight", r".*\.mask": ""}
    upstream = {"h.11.ln_1.bias": torch.ones(1), "wte.weight": torch.zeros(2), "h.0.attn.mask": torch.ones(3)}
    ours = checkpoint.rename(upstream, keys)
    assert ours.keys() == {"blocks.11.norm.bias", "embed.weight"}
    assert ours["embed.weight"] is upstream["wte.weight"]
    with pytest.raises(CheckpointError, match=r"h\.0\.ln_2\.bias: no entry"):
        checkpoint.rename({"h.0.ln_2.bias": torch.ones(1)}, keys)
    with pytest.raises(CheckpointError, match="two upstream names"):
        checkpoint.rename({"a": torch.ones(1), "b": torch.ones(1)}, {"a|b": "same"})

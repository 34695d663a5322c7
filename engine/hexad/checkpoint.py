"""Checkpoints: ``<name>.safetensors`` beside a manifest ``<name>.json`` that holds its sha256. Never pickle.

safetensors does not notice a flipped bit, so the hash is checked on every load. Weights are stored in
float32, or in bfloat16 where that would pass 4 MB, and always loaded as float32.
"""

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .errors import CheckpointError
from .files import atomic_write

SHIPPED = Path(__file__).parent / "checkpoints"
LIMIT = 4 * 1000 * 1000


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers by name; a tied tensor once, under its first name."""
    own: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own.setdefault(id(tensor), (name, tensor))
    return dict(own.values())


def as_stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they will be written: float32, or bfloat16 where float32 would pass 4 MB."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for dtype in (torch.float32, torch.bfloat16):
        stored = {name: t.to(dtype) if t.is_floating_point() else t for name, t in plain.items()}
        size = sum(t.numel() * t.element_size() for t in stored.values())
        if size <= LIMIT:
            return stored
    raise CheckpointError(f"weights take {size:,} bytes in bfloat16, over the limit of {LIMIT:,}")


def save(name: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], directory: Path = SHIPPED) -> Path:
    """Write ``<name>.safetensors`` and ``<name>.json``: both, or neither. Returns the path of the weights.

    The manifest is given the hash, the size and the tool versions. Non-finite weights are a CheckpointError.
    """
    _check_finite(tensors, f"{name}: refusing to save")
    content = safetensors.torch.save(as_stored(tensors))
    full = {
        "name": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        **manifest,
        "tools": {"python": platform.python_version(), "torch": torch.__version__},
    }
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / f"{name}.safetensors"
    atomic_write({weights: content, weights.with_suffix(".json"): (json.dumps(full, indent=2) + "\n").encode()})
    return weights


def read(name: str, path: str | Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The verified tensors (floating ones as float32) and manifest of ``name``.

    ``path`` is a ``.safetensors`` file with its manifest beside it, or the folder that holds both; None means
    the weights shipped in the package. Raises CheckpointError naming the file and what is wrong.
    """
    weights = SHIPPED if path is None else Path(path)
    if weights.suffix != ".safetensors":
        weights = weights / f"{name}.safetensors"
    try:
        manifest = json.loads(weights.with_suffix(".json").read_text("utf-8"))
        content = weights.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{weights.with_suffix('.json')}: not a JSON manifest ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("name") != name:
        raise CheckpointError(f"{weights.with_suffix('.json')}: not the manifest of {name!r}")
    if len(content) != manifest.get("bytes"):
        raise CheckpointError(f"{weights}: {len(content)} bytes, the manifest says {manifest.get('bytes')}: truncated?")
    if hashlib.sha256(content).hexdigest() != manifest.get("sha256"):
        raise CheckpointError(f"{weights}: sha256 differs from the manifest's: damaged or replaced")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{weights}: not a safetensors file ({error})") from error
    _check_finite(tensors, str(weights))
    return {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}, manifest


def load(model: nn.Module, name: str, path: str | Path | None = None) -> dict[str, Any]:
    """Fill ``model`` with the verified weights of ``name`` and return the manifest (see ``read``)."""
    tensors, manifest = read(name, path)
    if "config" in manifest and manifest["config"] != config_of(model):
        raise CheckpointError(f"{name}: made for config {manifest['config']}, the model has {config_of(model)}")
    fill(model, tensors, source=name)
    return manifest


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """The model's ``config`` dataclass as it reads back from JSON, or None when it has none."""
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return None
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "weights") -> None:
    """Copy ``tensors`` in: exactly the model's names and shapes, or CheckpointError and nothing copied."""
    own = tensors_of(model)
    missing, foreign = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing:
        raise CheckpointError(f"{source}: missing {', '.join(missing)}")
    if foreign:
        raise CheckpointError(f"{source}: holds {', '.join(foreign)}, which the model does not have")
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            got, wants = tuple(tensors[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{source}: {name} has shape {got}, the model wants {wants}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def rename(tensors: Mapping[str, Tensor], keys: Mapping[str, str]) -> dict[str, Tensor]:
    r"""Upstream names -> ours by a KEYS table of full-match regular expressions.

    ``{r"h\.(\d+)\.ln_1\.(.+)": r"blocks.\1.norm1.\2"}``; the first pattern that matches wins, and an empty
    replacement drops the tensor. A name that no pattern matches, or two that meet, is a CheckpointError.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        pattern = next((p for p in keys if re.fullmatch(p, name)), None)
        if pattern is None:
            raise CheckpointError(f"{name}: no entry of the KEYS table matches this upstream name")
        if not keys[pattern]:
            continue
        ours = re.sub(pattern, keys[pattern], name)
        if ours in renamed:
            raise CheckpointError(f"{name}: the KEYS table maps two upstream names to {ours}")
        renamed[ours] = tensor
    return renamed


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{where}: {name} holds NaN or infinity")

"""The two real data sets, both already on the machine: handwritten digits and the Python language reference.

Digits are scikit-learn's ``load_digits``: 1,797 images of 8x8 pixels with 17 grey levels. Text is
``pydoc_data.topics``, which ships inside every CPython. The splits are fixed, and nothing is ever trained on
``test``.
"""

import functools
import hashlib
import platform
from importlib import metadata
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LEVELS = 17
TRAIN_IMAGES = 1500


class Images(NamedTuple):
    """``x`` (N,8,8) uint8 levels 0..16, ``y`` (N,) int64 classes 0..9."""

    x: Tensor
    y: Tensor


class Digits(NamedTuple):
    """1,500 training images and 297 held-out ones."""

    train: Images
    test: Images


class Text(NamedTuple):
    """The first nine tenths of the characters, and the held-out last tenth."""

    train: str
    test: str


@functools.cache
def _digits() -> Digits:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x = torch.from_numpy(pixels[order].astype(np.uint8).reshape(-1, 8, 8))
    y = torch.from_numpy(classes[order].astype(np.int64))
    return Digits(Images(x[:TRAIN_IMAGES], y[:TRAIN_IMAGES]), Images(x[TRAIN_IMAGES:], y[TRAIN_IMAGES:]))


def digits() -> Digits:
    """The handwritten digits, split by a fixed permutation. Fresh tensors on every call."""
    train, test = _digits()
    return Digits(Images(train.x.clone(), train.y.clone()), Images(test.x.clone(), test.y.clone()))


@functools.cache
def topics() -> Text:
    """The language reference of the running CPython: all topics in key order, joined by a blank line."""
    from pydoc_data.topics import topics as by_key

    text = "\n\n".join(by_key[key] for key in sorted(by_key))
    cut = len(text) - len(text) // 10
    return Text(text[:cut], text[cut:])


def dequantise(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Levels 0..16 -> (x + u) / 17 in [0, 1) with u ~ U[0, 1), float32 and of x's shape."""
    u = torch.rand(x.shape, generator=generator)
    return (x.float() + u) / LEVELS


def quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] (level / 16) -> the nearest of the 17 levels, uint8 and of the same shape."""
    return (images.clamp(0, 1) * (LEVELS - 1)).round().to(torch.uint8)


def provenance(kind: str) -> dict[str, str]:
    """What a manifest records about the data of ``kind`` ("digits" or "text"): versions and a hash."""
    if kind == "digits":
        content = b"".join(part.numpy().tobytes() for split in _digits() for part in split)
        source = f"scikit-learn {metadata.version('scikit-learn')} load_digits"
    elif kind == "text":
        content = "".join(topics()).encode()
        source = "pydoc_data.topics"
    else:
        raise ValueError(f"kind: got {kind!r}, wants 'digits' or 'text'")
    return {
        "source": source,
        "sha256": hashlib.sha256(content).hexdigest(),
        "cpython": platform.python_version(),
    }

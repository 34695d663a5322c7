"""Images as PNG files: a grid of samples out, one 8x8 digit in."""

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .data import quantise
from .errors import InputError

_PAPER = 255


def encode_png(pixels: np.ndarray) -> bytes:
    """Grey values (H,W) uint8 -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def grid(images: Tensor, *, columns: int | None = None, scale: int = 8) -> np.ndarray:
    """Images (n,8,8) in [0,1] -> one picture (H,W) uint8, ``columns`` to a row, pixels ``scale`` wide.

    A single image has no gap around it: at scale 1 it is the 8x8 image itself.
    """
    count, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    gap = max(1, scale // 2) if count > 1 else 0
    grey = (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    large = np.kron(grey, np.ones((1, scale, scale), np.uint8))
    rows = -(-count // columns)
    step_y, step_x = height * scale + gap, width * scale + gap
    sheet = np.full((rows * step_y + gap, columns * step_x + gap), _PAPER, np.uint8)
    for i, image in enumerate(large):
        top, left = gap + i // columns * step_y, gap + i % columns * step_x
        sheet[top : top + height * scale, left : left + width * scale] = image
    return sheet


def read_digit(path: Path) -> Tensor:
    """An 8x8 grey PNG -> levels (1,8,8) uint8, each grey value taken to the nearest of the 17 levels."""
    try:
        with Image.open(path) as image:
            if image.size != (8, 8):
                size = "x".join(map(str, image.size))
                raise InputError("IMAGE", f"{path} of {size} pixels", "8x8 pixels (as generate --n 1 --scale 1 writes)")
            if image.mode not in ("L", "1", "LA", "P", "RGB", "RGBA"):
                raise InputError("IMAGE", f"{path} of mode {image.mode}", "8 bits per grey value")
            colours = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise InputError("IMAGE", path, "an image file") from None
    except OSError as error:
        raise InputError("IMAGE", path, f"an image that can be read ({error.strerror or error})") from None
    if (colours != colours[..., :1]).any():
        raise InputError("IMAGE", f"{path} in colour", "greys only")
    return quantise(torch.from_numpy(colours[None, ..., 0].copy()) / 255)

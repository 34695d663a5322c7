"""Drawing images pixel by pixel from an autoregressive model, with a cache of every layer's features.

A pass over the whole image per pixel computes n^2 times what is new. With the cache each layer's vertical
stack runs once per row and its horizontal stack once per pixel (Ramachandran et al., 2017, "Fast Generation
for Convolutional Autoregressive Models"); the logits are the uncached ones bit for bit. On the CPU one kernel
goes through all layers and pixels; elsewhere each layer is a call.
"""

import torch
from torch import Tensor

import hexad_kernels as hk

from ..models.pixelcnn import PLANES, PixelCNN
from . import Progress


class Cache:
    """What each layer has seen so far: the inputs of both stacks, one (B,C,H,W) buffer per layer."""

    def __init__(self, model: PixelCNN, batch: int) -> None:
        config = model.config
        like = model.place

        def buffer(channels: int) -> Tensor:
            return like.new_zeros(batch, channels, config.size, config.size)

        image = buffer(PLANES)
        self.v = [image, *(buffer(config.channels) for _ in range(config.layers))]
        self.h = [image, *(buffer(config.channels) for _ in range(config.layers))]
        self.down: list[Tensor] = []

    def write(self, model: PixelCNN, row: int, col: int, level: Tensor) -> None:
        """Put the level (B,) drawn for a pixel where the first layer reads it."""
        self.v[0][:, :, row, col] = model.planes(level)


def start_row(model: PixelCNN, cache: Cache, row: int) -> None:
    """Run the vertical stack at ``row``; the rows above are complete."""
    cache.down = []
    for i, layer in enumerate(model.layers):
        cache.v[i + 1][:, :, row], down = layer.vertical(cache.v[i], row)  # type: ignore[operator]
        cache.down.append(down)


def pixel_logits(model: PixelCNN, cache: Cache, row: int, col: int) -> Tensor:
    """Run the horizontal stack at one pixel -> logits (B,levels)."""
    for i, layer in enumerate(model.layers):
        down = cache.down[i][:, :, col]
        cache.h[i + 1][:, :, row, col] = layer.horizontal(cache.h[i], down, row, col)  # type: ignore[operator]
    return model.read_out(cache.h[-1][:, :, row, col], row, col)


@torch.no_grad()
def sample(
    model: PixelCNN,
    seeds: Tensor,
    *,
    temperature: float = 1.0,
    cached: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Draw one image per seed -> levels (B,H,W) int64. Image i depends on ``seeds[i]`` alone.

    ``cached=False`` evaluates the whole image for every pixel, for comparison: the images are the same (on a GPU up to
    draws that rounding decides).
    """
    if cached and one_call_serves(model, seeds):
        return in_one_call(model, seeds, temperature, progress)
    return layer_by_layer(model, seeds, temperature, cached, progress)


def one_call_serves(model: PixelCNN, seeds: Tensor) -> bool:
    """Whether a kernel takes all layers at once. The reference for such a call would not cache."""
    if model.place.is_cpu or model.place.dtype != torch.float32:
        return model.place.dtype == torch.float32
    image = torch.zeros(len(seeds), model.config.size, model.config.size, dtype=torch.int64, device=seeds.device)
    return hk.explain("gated_pixelcnn", image, model.packed(), None, seeds, **model.network()).served_by != "reference"


def in_one_call(model: PixelCNN, seeds: Tensor, temperature: float, progress: Progress | None = None) -> Tensor:
    """All layers of a pixel in one call of the kernel, and all pixels, unless each is reported."""
    size, network, weights = model.config.size, model.network(), model.packed()
    pixels = size * size
    image = torch.zeros(len(seeds), size, size, dtype=torch.int64, device=weights.device)
    cache = hk.gated_pixelcnn_cache(image, weights, **network)
    step = pixels if progress is None else 1
    for begin in range(0, pixels, step):
        end = begin + step
        hk.gated_pixelcnn(image, weights, cache, seeds, begin=begin, end=end, temperature=temperature, **network)
        if progress is not None:
            progress(end, pixels)
    return image


def layer_by_layer(
    model: PixelCNN, seeds: Tensor, temperature: float, cached: bool = True, progress: Progress | None = None
) -> Tensor:
    """A call for each layer's part, on any device."""
    size, place = model.config.size, model.place
    image = torch.zeros(len(seeds), size, size, dtype=torch.int64, device=place.device)
    cache = Cache(model, len(seeds))
    for row in range(size):
        if cached:
            start_row(model, cache, row)
        for col in range(size):
            logits = pixel_logits(model, cache, row, col) if cached else model(image)[:, :, row, col]
            position = row * size + col
            level = hk.sample(logits.contiguous(), seeds, position=position, temperature=temperature)
            image[:, row, col] = level
            cache.write(model, row, col, level)
            if progress is not None:
                progress(position + 1, size * size)
    return image

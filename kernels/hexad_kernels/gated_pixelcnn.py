"""gated_pixelcnn: a whole gated PixelCNN along its pixels, one call for one pixel, a row or the image.

The network maps levels x (B, H, W) to logits (B, levels, H, W); those of a pixel depend on earlier pixels, in raster
order, only. With v = h = (2 x / (levels - 1) - 1, 1), its C_in = 2 planes, each layer does

    z = vertical_conv(v) + vertical_place               k x k taps: "above", from the second layer on "above_or_at"
    d = down(z)                                         1 x 1
    v = gate(z)                   (+ v)                 (...): from the second layer on
    h = out(gate(horizontal_conv(h) + d + horizontal_place))   (+ h)      1 x k taps: "A", from the second layer on "B"

and in the end logits = logits_conv(gate(head(h))) + place. Convolutions are `maskedconv`, with a bias; z has 2 C
channels, v and h have C; gate(a, b) = f(a) (1 + f(b / 2)) / 2 on the halves of its channels, f(t) = t / sqrt(1 + t^2).

A pass over the image for every pixel repeats all but the new pixel. Here the vertical stack runs once per row and the
horizontal stack once per pixel, from a cache of what they saw last. Every sum and every other operation is that of the
network over the whole image, so the logits are its logits, bit for bit.

Papers: van den Oord et al. 2016 (gated PixelCNN, arXiv 1606.05328), Ramachandran et al. 2017 (caches, 1704.06001).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hexad_kernels import arrays, check, native
from hexad_kernels.maskedconv import MASKS, taps_before
from hexad_kernels.maskedconv import reference as convolve
from hexad_kernels.op import Op
from hexad_kernels.sample import reference as draw

PLANES = 2
LANES = 16
HEADER = 16  # floats at the start of a cache's row; the first says how many pixels it holds
MOST_CHANNELS = 1024
FLOATS = (torch.float32, torch.float64)


class PixelCNNLayer(NamedTuple):
    """A layer's weights (out, in, height, width), biases (out,) and places (out, H, W)."""

    vertical: Tensor
    vertical_bias: Tensor
    vertical_place: Tensor
    down: Tensor
    down_bias: Tensor
    horizontal: Tensor
    horizontal_bias: Tensor
    horizontal_place: Tensor
    out: Tensor
    out_bias: Tensor


class PixelCNNReadOut(NamedTuple):
    """The read-out's, likewise."""

    head: Tensor
    head_bias: Tensor
    logits: Tensor
    logits_bias: Tensor
    place: Tensor


def _masks(first: bool) -> tuple[int, int]:
    return (MASKS["above"], MASKS["A"]) if first else (MASKS["above_or_at"], MASKS["B"])


def _parts(
    levels: int, height: int, width: int, channels: int, layers: int, kernel: int
) -> list[list[tuple[tuple[int, ...], int]]]:
    """The tensors of each layer and of the read-out: their shapes, and how many taps count (0: not a convolution)."""
    c, c2, k = channels, 2 * channels, kernel
    parts: list[list[tuple[tuple[int, ...], int]]] = []
    for i in range(layers):
        inputs, (down, across) = c if i else PLANES, _masks(i == 0)
        vertical = ((c2, inputs, k, k), taps_before(down, k, k)), ((c2,), 0), ((c2, height, width), 0)
        horizontal = ((c2, inputs, 1, k), taps_before(across, 1, k)), ((c2,), 0), ((c2, height, width), 0)
        parts.append([*vertical, ((c2, c2, 1, 1), 1), ((c2,), 0), *horizontal, ((c, c, 1, 1), 1), ((c,), 0)])
    read_out = [((c2, c, 1, 1), 1), ((c2,), 0), ((levels, c, 1, 1), 1), ((levels,), 0), ((levels, height, width), 0)]
    return [*parts, [(tuple(shape), taps) for shape, taps in read_out]]


def _floats(shape: tuple[int, ...], taps: int) -> int:
    """How many floats a tensor takes, packed."""
    if len(shape) == 4:
        return -(-shape[0] // LANES) * LANES * shape[1] * taps
    return math.prod(shape)


def weights_size(levels: int, height: int, width: int, channels: int, layers: int, kernel: int) -> int:
    first, *rest, last = _parts(levels, height, width, channels, min(layers, 2), kernel)
    of = [sum(_floats(*part) for part in parts) for parts in (first, rest[0] if rest else [], last)]
    return of[0] + of[1] * (layers - 1) + of[2]


def cache_size(height: int, width: int, channels: int, layers: int, kernel: int) -> int:
    """The floats that a cache has for each image (csrc/op/gated_pixelcnn.h)."""
    reach = kernel // 2
    rows, rest = (reach + 1) * (width + 2 * reach), (width + reach) * channels + width * 2 * channels
    return HEADER + rows * (PLANES + (layers - 1) * channels) + layers * rest


def pack_gated_pixelcnn(layers: Sequence[PixelCNNLayer], read_out: PixelCNNReadOut) -> Tensor:
    """The network's weights in one flat float tensor, as `gated_pixelcnn` reads them.

    Convolutions go into panels of 16 outputs, each tap's inputs in turn, masked taps left out; places are laid out
    pixel by pixel. ValueError names a tensor that does not fit the others.
    """
    if not isinstance(layers, Sequence) or not all(isinstance(layer, PixelCNNLayer) for layer in layers) or not layers:
        raise TypeError(f"layers: got {check.described(layers)}, wants a sequence of at least one PixelCNNLayer")
    if not isinstance(read_out, PixelCNNReadOut):
        raise TypeError(f"read_out: got {check.described(read_out)}, wants a PixelCNNReadOut")
    place = check.tensor(read_out.place, "read_out, place", rank=3, dtypes=FLOATS)
    levels, height, width = place.shape
    channels = check.tensor(read_out.head, "read_out, head", rank=4, dtypes=FLOATS).shape[1]
    kernel = check.tensor(layers[0].vertical, "layer 0, vertical", rank=4, dtypes=FLOATS).shape[3]
    packed = []
    for i, parts in enumerate(_parts(levels, height, width, channels, len(layers), kernel)):
        given: PixelCNNLayer | PixelCNNReadOut = layers[i] if i < len(layers) else read_out
        where = f"layer {i}" if i < len(layers) else "read_out"
        for name, value, (shape, taps) in zip(given._fields, given, parts, strict=True):
            check.operand(value, f"{where}, {name}", shape, place, "the read-out's place")
            if len(shape) == 4:
                outputs, inputs = shape[:2]
                rows = value.detach().flatten(2)[..., :taps].transpose(1, 2).reshape(outputs, taps * inputs)
                rows = F.pad(rows, (0, 0, 0, -outputs % LANES))
                packed.append(rows.unflatten(0, (-1, LANES)).transpose(1, 2).flatten())
            elif len(shape) == 3:
                packed.append(value.detach().permute(1, 2, 0).flatten())
            else:
                packed.append(value.detach())
    return torch.cat(packed)


def _unpack(weights: Tensor, shapes: list[tuple[tuple[int, ...], int]], at: int) -> tuple[list[Tensor], int]:
    found = []
    for shape, taps in shapes:
        flat = weights[at : at + _floats(shape, taps)]
        at += len(flat)
        if len(shape) == 4:
            outputs, inputs, kh, kw = shape
            rows = flat.view(-(-outputs // LANES), inputs * taps, LANES).transpose(1, 2).flatten(0, 1)[:outputs]
            kept = rows.view(outputs, taps, inputs).transpose(1, 2)
            found.append(F.pad(kept, (0, kh * kw - taps)).view(shape))
        elif len(shape) == 3:
            found.append(flat.view(*shape[1:], shape[0]).permute(2, 0, 1))
        else:
            found.append(flat)
    return found, at


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    b = 0.5 * b
    return a * torch.rsqrt(1 + a * a) * (0.5 + 0.5 * (b * torch.rsqrt(1 + b * b)))


def network(image: Tensor, weights: Tensor, levels: int, channels: int, layers: int, kernel: int) -> Tensor:
    """Levels (B,H,W) and packed weights -> logits (B,levels,H,W), in plain torch."""
    grey = image.to(weights.dtype) * (2 / (levels - 1)) - 1
    v = h = torch.stack([grey, torch.ones_like(grey)], dim=1)
    *parts, last = _parts(levels, image.shape[1], image.shape[2], channels, layers, kernel)
    at = 0
    for i, shapes in enumerate(parts):
        tensors, at = _unpack(weights, shapes, at)
        w, (below, across) = PixelCNNLayer(*tensors), _masks(i == 0)
        z = convolve(v, w.vertical, w.vertical_bias, below, None, None) + w.vertical_place
        d = convolve(z, w.down, w.down_bias, MASKS["B"], None, None)
        x = convolve(h, w.horizontal, w.horizontal_bias, across, None, None) + d + w.horizontal_place
        y = convolve(_gate(x), w.out, w.out_bias, MASKS["B"], None, None)
        v, h = (_gate(z) + v, y + h) if i else (_gate(z), y)
    r = PixelCNNReadOut(*_unpack(weights, last, at)[0])
    gated = _gate(convolve(h, r.head, r.head_bias, MASKS["B"], None, None))
    return convolve(gated, r.logits, r.logits_bias, MASKS["B"], None, None) + r.place


def _check_network(image: Tensor, weights: Tensor, levels: int, channels: int, layers: int, kernel: int) -> None:
    check.tensor(image, "image", rank=3, dtypes=(torch.int64,))
    check.tensor(weights, "weights", rank=1, dtypes=FLOATS)
    check.like(weights, "weights", image, "image", dtype=False)
    _, height, width = image.shape
    for name, value, low, high in (
        ("levels", levels, 2, 2 * MOST_CHANNELS), ("channels", channels, 1, MOST_CHANNELS),
        ("layers", layers, 1, 2**16), ("kernel", kernel, 1, 2**10),
        ("image's height", height, 1, 4096), ("image's width", width, 1, 4096),
    ):  # fmt: skip
        if not low <= value <= high:
            raise ValueError(f"{name}: got {value}, wants {low} to {high}")
    if kernel % 2 == 0:
        raise ValueError(f"kernel: got {kernel}, wants an odd size")
    size = weights_size(levels, height, width, channels, layers, kernel)
    if weights.shape[0] != size:
        check.shape(weights, "weights", (size,), "pack_gated_pixelcnn of this network")


def contract(
    image: Tensor, weights: Tensor, cache: Tensor | None, seeds: Tensor | None,
    levels: int, channels: int, layers: int, kernel: int, begin: int, end: int, temperature: float,
) -> tuple[Tensor]:  # fmt: skip
    _check_network(image, weights, levels, channels, layers, kernel)
    batch, height, width = image.shape
    if not 0 <= begin <= end <= height * width:
        raise ValueError(f"begin, end: got {begin}, {end}, wants 0 <= begin <= end <= {height * width} pixels")
    if cache is not None:
        want = (batch, cache_size(height, width, channels, layers, kernel))
        check.operand(cache, "cache", want, weights, "weights", "gated_pixelcnn_cache of this network")
        check.own_memory(cache, "cache")
    elif begin:
        raise ValueError(f"cache: missing, wants the one of the pixels before begin {begin}")
    if seeds is not None:
        check.own_memory(image, "image")
        check.tensor(seeds, "seeds", dtypes=(torch.int64,))
        check.shape(seeds, "seeds", (batch,), "a seed per image")
        check.like(seeds, "seeds", image, "image")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}, wants a finite number of at least 0")
    return (weights.new_empty(batch, end - begin, levels),)


def reference(
    image: Tensor, weights: Tensor, cache: Tensor | None, seeds: Tensor | None,
    levels: int, channels: int, layers: int, kernel: int, begin: int, end: int, temperature: float,
) -> Tensor:  # fmt: skip
    batch, pixels = len(image), image.shape[1] * image.shape[2]
    if seeds is None:
        asked = image.flatten(1)[:, begin:end]
        wrong = ((asked < 0) | (asked >= levels)).nonzero().tolist()
        if wrong:
            row, at = wrong[0]
            got = f"pixel {begin + at} of row {row} is {int(asked[row, at])}"
            raise ValueError(f"image: {got}, wants levels 0 to {levels - 1}")
    if cache is not None:
        cache[:, 0] = -1  # holds nothing that the kernel could go on from
    if seeds is None:
        logits = network(image, weights, levels, channels, layers, kernel)
        return logits.flatten(2)[..., begin:end].transpose(1, 2).contiguous()
    found = weights.new_empty(batch, end - begin, levels)
    for pixel in range(begin, end):
        at = network(image, weights, levels, channels, layers, kernel).view(batch, levels, pixels)[..., pixel]
        found[:, pixel - begin] = at
        level = draw(at, seeds, pixel, None, temperature, None, 0, None, 1.0, None, 0.0, None)
        image[:, pixel // image.shape[2], pixel % image.shape[2]] = level
    return found


def _native(
    outputs: tuple[Tensor],
    image: Tensor, weights: Tensor, cache: Tensor | None, seeds: Tensor | None,
    levels: int, channels: int, layers: int, kernel: int, begin: int, end: int, temperature: float,
) -> None:  # fmt: skip
    if cache is None:
        cache = weights.new_empty(len(image), cache_size(image.shape[1], image.shape[2], channels, layers, kernel))
    own = image.contiguous(), cache.contiguous()
    native.C.gated_pixelcnn(
        own[0], weights.contiguous(), own[1], None if seeds is None else seeds.contiguous(), outputs[0],
        levels, channels, layers, kernel, begin, temperature,
    )  # fmt: skip
    for given, used in zip((image, cache), own):
        if used is not given:
            given.copy_(used)


_op = Op(
    "gated_pixelcnn",
    "(Tensor(a!) image, Tensor weights, Tensor(b!)? cache, Tensor? seeds, SymInt levels, SymInt channels,"
    " SymInt layers, SymInt kernel, SymInt begin, SymInt end, float temperature) -> Tensor",
    contract=contract,
    reference=reference,
    native=_native,
)


def gated_pixelcnn_cache(
    image: Tensor, weights: Tensor, *, levels: int, channels: int, layers: int, kernel: int = 3
) -> Tensor:
    """A cache for calls of `gated_pixelcnn` with these arguments; what it holds does not matter before begin 0.

    ValueError or TypeError names a wrong argument.
    """
    if arrays.foreign(image):
        options = {"levels": levels, "channels": channels, "layers": layers, "kernel": kernel}
        return arrays.serve(
            lambda i, w: gated_pixelcnn_cache(i, w, **options), [image, weights], ["image", "weights"], [False] * 2
        )
    for name, value in (("levels", levels), ("channels", channels), ("layers", layers), ("kernel", kernel)):
        check.integer(value, name)
    _check_network(image, weights, levels, channels, layers, kernel)
    return weights.new_empty(len(image), cache_size(image.shape[1], image.shape[2], channels, layers, kernel))


def gated_pixelcnn(
    image: Tensor,
    weights: Tensor,
    cache: Tensor | None = None,
    seeds: Tensor | None = None,
    *,
    levels: int,
    channels: int,
    layers: int,
    kernel: int = 3,
    begin: int = 0,
    end: int | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Logits of the pixels begin to end - 1 in raster order; with seeds, those pixels drawn from them in turn.

    image    (B, H, W) int64, levels 0 to levels - 1; with seeds, pixels begin to end - 1 are written
    weights  float32 (float64 through the reference), from pack_gated_pixelcnn
    cache    from gated_pixelcnn_cache, is written; may be left out if begin is 0. begin 0 starts it anew; a later begin
             wants it as the call that ended there left it.
    seeds    (B,) int64: pixel p of row b is `sample`'s token for seeds[b], position p and temperature
    end      all pixels, if not given
    levels 2 to 2048, channels 1 to 1024, kernel odd: the network's, as packed.
    Returns (B, end - begin, levels). Row b depends on its own image and seed only. It has no gradient.
    ValueError or TypeError names a wrong argument, a level out of range (before anything is written) or the first pixel
    whose logits have NaN or are -inf everywhere. On a GPU, where reading them would stall the device, values are the
    caller's care: such a pixel is -1 or -2 in the image.
    """
    if end is None:
        end = image.shape[1] * image.shape[2] if getattr(image, "ndim", 0) == 3 else 0
    return _op(image, weights, cache, seeds, levels, channels, layers, kernel, begin, end, temperature)

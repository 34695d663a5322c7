"""gated_pixelcnn in Triton: one program takes an image (several, where it is interpreted) through all of its pixels.

Images have nothing to do with each other, so no program waits for another, and one launch draws the whole image; a
captured graph may hold it. Within a program a barrier stands between what a product stores and the next one reads. The
cache is the CPU's (csrc/op/gated_pixelcnn.h): per layer the rows that the vertical stack still needs, the horizontal
stack's output along this row, and what goes down along it. The vertical stack runs once per row, a matrix product over
its pixels; the horizontal stack once per pixel, a matrix times a vector, spread over all threads in both directions.
Every tile has a fixed size, so a pixel's bits depend neither on the batch nor on how the pixels are cut into calls.

No error can be raised without waiting for the device: a pixel whose logits have NaN is -1, one where they are all -inf
is -2, as in `sample`; a level out of range or a cache of other pixels goes unseen.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hexad_kernels.gated_pixelcnn import HEADER as CACHE_HEADER
from hexad_kernels.gated_pixelcnn import cache_size
from hexad_kernels.triton.common import INTERPRETED, launch
from hexad_kernels.triton.sample import draw, find_peak, uniform

HEADER = tl.constexpr(CACHE_HEADER)
COPY = tl.constexpr(1024)  # floats that are cleared or moved at a time


@triton.jit
def padded(outputs):
    """As panels of 16 have them."""
    return (outputs + 15) // 16 * 16


@triton.jit
def layout(
    at, held, FIRST: tl.constexpr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,
):  # fmt: skip
    """Of a layer whose weights begin at `at` and whose part of the cache at `held`: its inputs, the inputs of a row's
    taps, and where its vertical place, `down`, the horizontal convolution, its place, `out`, the next layer's weights,
    the horizontal stack's output, what goes down and the next layer's part of the cache begin."""
    inputs = 2 if FIRST else CHANNELS
    taps = KERNEL // 2 * 2 if FIRST else (KERNEL // 2 + 1) * CHANNELS
    wide = 2 * CHANNELS
    vertical_place = at + padded(wide) * taps * KERNEL + wide
    down = vertical_place + HEIGHT * WIDTH * wide
    horizontal = down + padded(wide) * wide + wide
    horizontal_place = horizontal + padded(wide) * taps + wide
    out = horizontal_place + HEIGHT * WIDTH * wide
    after = out + padded(CHANNELS) * CHANNELS + CHANNELS
    h = held + (KERNEL // 2 + 1) * (WIDTH + KERNEL // 2 * 2) * inputs
    d = h + (WIDTH + KERNEL // 2) * CHANNELS
    return inputs, taps, vertical_place, down, horizontal, horizontal_place, out, after, h, d, d + WIDTH * wide


@triton.jit
def both_halves(n, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):
    """Outputs n to n + COLUMNS / 2 - 1 of each half of the channels, and which there are."""
    j = tl.arange(0, COLUMNS)
    c = n + j % (COLUMNS // 2)
    return c + j // (COLUMNS // 2) * CHANNELS, c < CHANNELS


@triton.jit
def squashed(t):
    return t * tl.div_rn(1.0, tl.sqrt_rn(1.0 + t * t))


@triton.jit
def gate(z, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of rows of both_halves."""
    a, b = tl.split(tl.permute(tl.reshape(z, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
    return squashed(a) * (0.5 + 0.5 * squashed(0.5 * b))


@triton.jit
def pixel_product(
    x_ptr, panel_ptr, size, bias, o, here, there, IMAGES: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    """Outputs o of `size` floats from x_ptr of each image, and the bias, which lies at that offset: partial sums stand
    in all threads until the end."""
    w_ptr = panel_ptr + (o // 16 * (16 * size) + o % 16)[None, None, :]
    total = tl.zeros((IMAGES, BK, COLUMNS), tl.float32)
    for begin in range(0, size, BK):
        k = begin + tl.arange(0, BK)[None, :, None]
        x = tl.load(x_ptr[:, None, None] + k, mask=there[:, None, None] & (k < size), other=0.0)
        w = tl.load(w_ptr + k * 16, mask=here[None, None, :] & (k < size), other=0.0)
        total += x * w
    return tl.sum(total, 1) + tl.load(panel_ptr + bias + o, mask=here, other=0.0)[None, :]


@triton.jit
def row_product(
    x_ptr, panel_ptr, size, bias, run, stride, o, here, there,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same for rows of runs of `run` floats, `stride` apart."""
    w_ptr = panel_ptr + (o // 16 * (16 * size) + o % 16)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, size, BK):
        k = begin + tl.arange(0, BK)
        at = k // run * stride + k % run
        x = tl.load(x_ptr[:, None] + at[None, :], mask=there[:, None] & (k < size)[None, :], other=0.0)
        w = tl.load(w_ptr + k[:, None] * 16, mask=here[None, :] & (k < size)[:, None], other=0.0)
        total = tl.dot(x, w, total, input_precision="ieee")
    return total + tl.load(panel_ptr + bias + o, mask=here, other=0.0)[None, :]


@triton.jit
def move_rows(caches, there, floats, KERNEL: tl.constexpr):
    """A layer's current row is the row above: rows of `floats` from `caches` move down by one."""
    for r in range(KERNEL // 2):
        for begin in range(0, floats, COPY):
            j = begin + tl.arange(0, COPY)[None, :]
            inside = there[:, None] & (j < floats)
            to = caches[:, None] + r * floats + j
            tl.store(to, tl.load(to + floats, mask=inside, other=0.0), mask=inside)
        tl.debug_barrier()


@triton.jit
def vertical_layer(
    caches, z_ptr, weights_ptr, there, row, at, held, more, FIRST: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, KERNEL: tl.constexpr,
    ROWS: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Along a row, the rows above being complete; where the next layer's weights and cache are."""
    inputs, taps, place, down, _, _, _, after, _, d, held_after = layout(
        at, held, FIRST, CHANNELS, HEIGHT, WIDTH, KERNEL
    )
    wide = 2 * CHANNELS
    floats = (WIDTH + KERNEL // 2 * 2) * inputs
    for p in range(0, WIDTH, PIXELS):
        col = p + tl.arange(0, ROWS) % PIXELS
        has = there & (col < WIDTH)
        # This layer's input at the pixels, and the next one's.
        own = held + KERNEL // 2 * floats + (KERNEL // 2 + col) * CHANNELS
        to = held_after + (KERNEL // 2 * (WIDTH + KERNEL // 2 * 2) + KERNEL // 2 + col) * CHANNELS
        for n in range(0, CHANNELS, COLUMNS // 2):
            o, here = both_halves(n, CHANNELS, COLUMNS)
            z = row_product(
                caches + held + col * inputs, weights_ptr + at, taps * KERNEL, place - wide - at, KERNEL * inputs,
                floats, o, here, has, ROWS, COLUMNS, BK,
            )  # fmt: skip
            inside = has[:, None] & here[None, :]
            place_ptr = weights_ptr + place + row * (WIDTH * wide)
            z += tl.load(place_ptr + col[:, None] * wide + o[None, :], mask=inside, other=0.0)
            tl.store(z_ptr[:, None] + o[None, :], z, mask=inside)
            if more:
                c = n + tl.arange(0, COLUMNS // 2)[None, :]
                gated = has[:, None] & (c < CHANNELS)
                v = gate(z, ROWS, COLUMNS)
                if not FIRST:
                    v += tl.load(caches[:, None] + own[:, None] + c, mask=gated, other=0.0)
                tl.store(caches[:, None] + to[:, None] + c, v, mask=gated)
        tl.debug_barrier()
        for n in range(0, wide, COLUMNS):
            o = n + tl.arange(0, COLUMNS)
            here = o < wide
            y = row_product(
                z_ptr, weights_ptr + down, wide, padded(wide) * wide, wide, 0, o, here, has, ROWS, COLUMNS, BK
            )  # fmt: skip
            tl.store(caches[:, None] + d + col[:, None] * wide + o[None, :], y, mask=has[:, None] & here[None, :])
        tl.debug_barrier()
    return after, held_after


@triton.jit
def horizontal_layer(
    caches, gated, weights_ptr, there, row, col, at, held, before, FIRST: tl.constexpr,
    CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, KERNEL: tl.constexpr,
    IMAGES: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """At one pixel; `before` is the input along this row. Where the next layer's weights, cache and input are."""
    inputs, taps, _, _, horizontal, place, out, after, h, d, held_after = layout(
        at, held, FIRST, CHANNELS, HEIGHT, WIDTH, KERNEL
    )
    wide, x_ptr, panel_ptr = 2 * CHANNELS, caches + before + col * inputs, weights_ptr + horizontal
    for n in range(0, CHANNELS, COLUMNS // 2):
        o, here = both_halves(n, CHANNELS, COLUMNS)
        z = pixel_product(x_ptr, panel_ptr, taps, padded(wide) * taps, o, here, there, IMAGES, COLUMNS, BK)
        z += tl.load(caches[:, None] + d + col * wide + o[None, :], mask=there[:, None] & here[None, :], other=0.0)
        z += tl.load(weights_ptr + place + (row * WIDTH + col) * wide + o, mask=here, other=0.0)[None, :]
        c = n + tl.arange(0, COLUMNS // 2)[None, :]
        tl.store(gated[:, None] + c, gate(z, IMAGES, COLUMNS), mask=there[:, None] & (c < CHANNELS))
    tl.debug_barrier()
    panel_ptr = weights_ptr + out
    for n in range(0, CHANNELS, COLUMNS):
        o = n + tl.arange(0, COLUMNS)
        here = o < CHANNELS
        y = pixel_product(
            gated, panel_ptr, CHANNELS, padded(CHANNELS) * CHANNELS, o, here, there, IMAGES, COLUMNS, BK
        )  # fmt: skip
        own = (KERNEL // 2 + col) * CHANNELS + o[None, :]
        inside = there[:, None] & here[None, :]
        if not FIRST:
            y += tl.load(caches[:, None] + before + own, mask=inside, other=0.0)
        tl.store(caches[:, None] + h + own, y, mask=inside)
    tl.debug_barrier()
    return after, held_after, h


@triton.jit
def read_out(
    x_ptr, gated, weights_ptr, logits, there, pixel, LEVELS: tl.constexpr, CHANNELS: tl.constexpr,
    IMAGES: tl.constexpr, COLUMNS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    wide = 2 * CHANNELS
    for n in range(0, CHANNELS, COLUMNS // 2):
        o, here = both_halves(n, CHANNELS, COLUMNS)
        z = pixel_product(
            x_ptr, weights_ptr, CHANNELS, padded(wide) * CHANNELS, o, here, there, IMAGES, COLUMNS, BK
        )  # fmt: skip
        c = n + tl.arange(0, COLUMNS // 2)[None, :]
        tl.store(gated[:, None] + c, gate(z, IMAGES, COLUMNS), mask=there[:, None] & (c < CHANNELS))
    tl.debug_barrier()
    panel_ptr, bias = weights_ptr + padded(wide) * CHANNELS + wide, padded(LEVELS) * CHANNELS
    for n in range(0, LEVELS, COLUMNS):
        o = n + tl.arange(0, COLUMNS)
        here = o < LEVELS
        y = pixel_product(gated, panel_ptr, CHANNELS, bias, o, here, there, IMAGES, COLUMNS, BK)
        y += tl.load(panel_ptr + bias + LEVELS + pixel * LEVELS + o, mask=here, other=0.0)[None, :]
        tl.store(logits[:, None] + o[None, :], y, mask=there[:, None] & here[None, :])
    tl.debug_barrier()


@triton.jit
def level_of(logits, levels, u, temperature, TILE: tl.constexpr):
    """sample's token."""
    top, level, wrong = find_peak(logits, levels, TILE)
    if (temperature > 0.0) & (top > float("-inf")) & (wrong == 0):
        level = draw(logits, levels, top, temperature, 0.0, 0, 0, u, False, TILE)
    return tl.where(wrong, -1, tl.where(top == float("-inf"), -2, level))


@triton.jit(do_not_specialize=["batch", "begin", "end"])
def gated_pixelcnn_kernel(
    image_ptr, weights_ptr, cache_ptr, seeds_ptr, logits_ptr, scratch_ptr, batch, begin, end, temperature, scale,
    cache_floats, LEVELS: tl.constexpr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    KERNEL: tl.constexpr, LAYERS: tl.constexpr, IMAGES: tl.constexpr, PIXELS: tl.constexpr, COLUMNS: tl.constexpr,
    ROW_BK: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = IMAGES * PIXELS
    program = tl.program_id(0).to(tl.int64)
    b = program * IMAGES + tl.arange(0, IMAGES)
    there = b < batch
    caches = cache_ptr + b * cache_floats
    scratch_ptr += program * (ROWS * 2 * CHANNELS)
    gated = scratch_ptr + tl.arange(0, IMAGES) * CHANNELS
    # The same for each pixel of a row.
    of_row = program * IMAGES + tl.arange(0, ROWS) // PIXELS
    z_ptr = scratch_ptr + tl.arange(0, ROWS) * (2 * CHANNELS)
    row_floats = (WIDTH + KERNEL // 2 * 2) * CHANNELS
    planes = HEADER + KERNEL // 2 * (WIDTH + KERNEL // 2 * 2) * 2
    if begin == 0:
        for at in range(0, cache_floats, COPY):
            j = at + tl.arange(0, COPY)[None, :]
            inside = there[:, None] & (j < cache_floats)
            tl.store(caches[:, None] + j, tl.zeros((IMAGES, COPY), tl.float32), mask=inside)
        tl.debug_barrier()
    for pixel in range(begin, end):
        row, col = pixel // WIDTH, pixel % WIDTH
        if col == 0:
            if row > 0:
                move_rows(caches + HEADER, there, (WIDTH + KERNEL // 2 * 2) * 2, KERNEL)
                _, _, _, _, _, _, _, _, _, _, held = layout(0, HEADER, True, CHANNELS, HEIGHT, WIDTH, KERNEL)
                for _i in range(1, LAYERS):
                    move_rows(caches + held, there, row_floats, KERNEL)
                    _, _, _, _, _, _, _, _, _, _, held = layout(0, held, False, CHANNELS, HEIGHT, WIDTH, KERNEL)
            at, held = vertical_layer(
                cache_ptr + of_row * cache_floats, z_ptr, weights_ptr, of_row < batch, row, 0, HEADER, LAYERS > 1, True,
                CHANNELS, HEIGHT, WIDTH, KERNEL, ROWS, PIXELS, COLUMNS, ROW_BK,
            )  # fmt: skip
            for i in range(1, LAYERS):
                at, held = vertical_layer(
                    cache_ptr + of_row * cache_floats, z_ptr, weights_ptr, of_row < batch, row, at, held,
                    i + 1 < LAYERS, False, CHANNELS, HEIGHT, WIDTH, KERNEL, ROWS, PIXELS, COLUMNS, ROW_BK,
                )  # fmt: skip
        at, held, before = horizontal_layer(
            caches, gated, weights_ptr, there, row, col, 0, HEADER, planes, True,
            CHANNELS, HEIGHT, WIDTH, KERNEL, IMAGES, COLUMNS, BK,
        )  # fmt: skip
        for _i in range(1, LAYERS):
            at, held, before = horizontal_layer(
                caches, gated, weights_ptr, there, row, col, at, held, before, False,
                CHANNELS, HEIGHT, WIDTH, KERNEL, IMAGES, COLUMNS, BK,
            )  # fmt: skip
        logits = logits_ptr + ((end - begin) * b + (pixel - begin)) * LEVELS
        read_out(
            caches + before + (KERNEL // 2 + col) * CHANNELS, gated, weights_ptr + at, logits, there, pixel,
            LEVELS, CHANNELS, IMAGES, COLUMNS, BK,
        )  # fmt: skip
        if seeds_ptr is not None:
            draws = uniform(tl.load(seeds_ptr + b, mask=there, other=0), pixel)
            for i in tl.static_range(IMAGES):
                one = program * IMAGES + i
                if one < batch:
                    row_ptr = logits_ptr + ((end - begin) * one + (pixel - begin)) * LEVELS
                    u = tl.sum(tl.where(tl.arange(0, IMAGES) == i, draws, 0.0), 0)
                    drawn = level_of(row_ptr, LEVELS, u, temperature, TILE)
                    tl.store(image_ptr + one * (HEIGHT * WIDTH) + pixel, drawn.to(tl.int64))
            tl.debug_barrier()
        level = tl.load(image_ptr + b * (HEIGHT * WIDTH) + pixel, mask=there, other=0).to(tl.float32)
        plane = caches + planes + (KERNEL // 2 + col) * 2
        tl.store(plane, level * scale - 1.0, mask=there)
        tl.store(plane + 1, tl.full((IMAGES,), 1.0, tl.float32), mask=there)
        tl.store(caches, tl.zeros((IMAGES,), tl.float32) + (pixel + 1), mask=there)
        tl.debug_barrier()


def refuses(image: Tensor, weights: Tensor, cache: Tensor | None, seeds: Tensor | None, *network: int) -> str | None:
    if weights.dtype != torch.float32:
        return f"{weights.dtype} (the network is float32)"
    levels, channels, layers, kernel = network[:4]
    row = cache_size(image.shape[1], image.shape[2], channels, layers, kernel)
    if max(weights.numel(), row, image.shape[1] * image.shape[2] * levels) >= 2**31 - 2**16:
        return "a network or a cache of 2^31 floats"
    return None


def images_together() -> int:
    """The images of a program. One on a chip, whose programs run side by side; an interpreter has them in turn."""
    return 16 if INTERPRETED else 1


def run(
    outputs: tuple[Tensor],
    image: Tensor, weights: Tensor, cache: Tensor | None, seeds: Tensor | None,
    levels: int, channels: int, layers: int, kernel: int, begin: int, end: int, temperature: float,
) -> None:  # fmt: skip
    if begin == end:
        return
    batch, height, width = image.shape
    floats = cache_size(height, width, channels, layers, kernel)
    if cache is None:
        cache = weights.new_empty(batch, floats)
    own = image.contiguous(), cache.contiguous()
    images, pixels = images_together(), 16
    programs = triton.cdiv(batch, images)
    scratch = weights.new_empty(programs * images * pixels * 2 * channels)
    # Half of a tile's columns for each half of the channels.
    wide = 2 * min(32, max(16, triton.next_power_of_2(channels)))
    launch(
        gated_pixelcnn_kernel, (programs,), image.device,
        own[0], weights.contiguous(), own[1], None if seeds is None else seeds.contiguous(), outputs[0], scratch,
        batch, begin, end, float(temperature), 2 / (levels - 1), floats,
        levels, channels, height, width, kernel, layers, images, pixels, wide, 32, 64,
        min(2048, max(256, triton.next_power_of_2(levels))), num_warps=8, num_stages=1,
    )  # fmt: skip
    for given, used in zip((image, cache), own):
        if used is not given:
            given.copy_(used)


BUDGET = {
    "digits float32": {"sm_80": (240, 11264), "sm_90": (232, 11264), "sm_100": (216, 11264), "gfx942": (248, 9216)},
    "warm float32": {"sm_90": (232, 11264)},
}

"""Sampling a batch of 16 images of 32x32 with the shipped network's layers, against the uncached loop in torch.

The uncached loop evaluates the whole network for every pixel. Each of its 1,024 passes does the same work, so some of
them are timed, in turn with whole cached samples, and the loop's time is their median times 1,024. That both draw the
same images is checked in full at 8x8, on the shipped weights, and here on the levels of the pixels that were timed.
"""

import time
from statistics import median

import pytest
import torch
from tests.cases import cases

import hexad_kernels as hk
from bench.roofline import measure
from hexad import registry
from hexad.models.pixelcnn import PixelCNN
from hexad.sampling import pixels

BATCH, SIZE, TIMED = 16, 32, (0, 1, 300, 517, 800, 1023)


@pytest.fixture
def model() -> PixelCNN:
    """The shipped weights, their places repeated over a larger image."""
    shipped = registry.load("pixelcnn")
    config = shipped.config
    grown = PixelCNN(type(config)(**{**vars(config), "size": SIZE}))
    times = SIZE // config.size
    state = {k: v.repeat(1, times, times) if k.endswith("place") else v for k, v in shipped.state_dict().items()}
    grown.load_state_dict(state)
    return grown.eval().requires_grad_(False)


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


@torch.no_grad()
def test_sampling_against_the_uncached_loop(benchmark, model):
    shipped, seeds = registry.load("pixelcnn"), torch.arange(BATCH)
    with hk.backend("reference"):
        small = pixels.sample(shipped, seeds, cached=False)
    assert torch.equal(pixels.sample(shipped, seeds), small)

    image = pixels.sample(model, seeds)
    uncached, ours = [], []

    def one_pass(place: int) -> torch.Tensor:
        """What the loop does for a pixel: the image so far, through all of the network in plain torch."""
        seen = image.flatten(1).clone()
        seen[:, place:] = 0
        with hk.backend("reference"):
            logits = model(seen.view_as(image))[:, :, place // SIZE, place % SIZE]
            return hk.sample(logits, seeds, position=place)

    one_pass(0)
    for place in TIMED:
        seconds, level = timed(lambda place=place: one_pass(place))
        assert torch.equal(level, image.flatten(1)[:, place])
        uncached.append(seconds)
        for _ in range(2):
            seconds, again = timed(lambda: pixels.sample(model, seeds))
            assert torch.equal(again, image)
            ours.append(seconds)
    benchmark.pedantic(lambda: pixels.sample(model, seeds), rounds=5)
    loop, mine, roofs = median(uncached) * SIZE**2, median(ours), measure(64)
    work = next(case.work for case in cases()["gated_pixelcnn"] if case.name == "sample_32x32")
    benchmark.extra_info.update(
        op="pixelcnn",
        case=f"sample_{BATCH}x{SIZE}x{SIZE}",
        dtype="float32",
        isa=hk.machine()["isa"],
        seconds=mine,
        gflops=work.flops / mine / 1e9,
        bound="arithmetic",
        roof_fraction=work.flops / mine / 1e9 / roofs.fma_fp32,
        vs_eager=loop / mine,
        uncached_passes_timed=len(uncached),
        uncached_seconds_scaled=loop,
        roofs=roofs.as_dict(),
    )
    print(
        f"\nPixelCNN, {BATCH} images of {SIZE}x{SIZE}: {mine * 1e3:.1f} ms, the uncached loop {loop:.1f} s "
        f"({len(uncached)} of {SIZE**2} passes timed): {loop / mine:.0f}x, samples identical"
    )

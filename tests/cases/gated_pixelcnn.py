import torch

from hexad_kernels.gated_pixelcnn import PixelCNNLayer, PixelCNNReadOut, pack_gated_pixelcnn, weights_size
from tests.cases import Call, Case, Work, rand


def network(g, *, levels, height, width, channels, layers, kernel):
    """Packed random weights."""
    c, c2 = channels, 2 * channels

    def conv(outputs, inputs, kh, kw):
        return rand(g, outputs, inputs, kh, kw, scale=(inputs * kh * kw) ** -0.5), rand(g, outputs, scale=0.3)

    def place(outputs):
        return rand(g, outputs, height, width, scale=0.3)

    parts = [
        PixelCNNLayer(
            *conv(c2, inputs, kernel, kernel), place(c2), *conv(c2, c2, 1, 1),
            *conv(c2, inputs, 1, kernel), place(c2), *conv(c, c, 1, 1),
        )
        for inputs in (2, *[c] * (layers - 1))
    ]  # fmt: skip
    return pack_gated_pixelcnn(parts, PixelCNNReadOut(*conv(c2, c, 1, 1), *conv(levels, c, 1, 1), place(levels)))


def case(name, batch, size, *, levels=17, channels=8, layers=2, kernel=3, drawn=True, **options):
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}
    height, width = size
    net = {"levels": levels, "channels": channels, "layers": layers, "kernel": kernel}

    def make(g):
        weights = network(g, height=height, width=width, **net)
        image = torch.randint(levels, (batch, *size), generator=g)
        seeds = torch.arange(batch) + 5 if drawn else None
        return Call((image, weights, None, seeds), {**net, **options})

    def row(call, i):
        image, weights, cache, seeds = call.args
        return Call((image[i : i + 1], weights, cache, None if seeds is None else seeds[i : i + 1]), call.kwargs)

    places = height * width
    shape = {"height": height, "width": width, **net}
    # Each weight but the places' is multiplied once for every pixel.
    taps = weights_size(**shape) - places * (layers * 4 * channels + levels)
    work = Work(flops=2.0 * batch * places * taps, bytes=4.0 * (taps + batch * places * levels))
    return Case(name, make, row, batch=batch, work=work, dtypes=(torch.float32,), **flags)


CASES = [
    case("small", 2, (3, 2), channels=3, levels=5, small=True),
    case("read", 3, (2, 3), drawn=False, small=True),
    case("greedy", 2, (3, 3), temperature=0.0),
    case("warm", 9, (2, 5), temperature=2.5),
    case("one_layer", 2, (4, 4), layers=1, channels=16),
    case("kernel_1", 2, (2, 3), kernel=1, layers=3),
    case("kernel_5", 1, (4, 6), kernel=5, channels=20, layers=3, drawn=False),
    case("kernel_beyond_image", 2, (2, 2), kernel=7, channels=5),
    case("one_pixel_wide", 5, (6, 1), channels=33, levels=40, drawn=False),
    case("part", 13, (3, 5), end=7, drawn=False),
    case("nothing_asked", 2, (3, 3), end=0),
    case("empty_batch", 0, (3, 3)),
    case("digits", 16, (8, 8), channels=32, layers=5, drawn=False),
    case("sample_32x32", 16, (32, 32), channels=32, layers=5, drawn=False, bench=True, bench_only=True),
]

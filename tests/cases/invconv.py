import math

from tests.cases import Call, Case, Work, rand


def case(name, shape, *, bias=True, **flags):
    batch, c = shape[:2]

    def make(g):
        weight = rand(g, c, c, scale=c**-0.5)
        return Call((rand(g, *shape), weight, *([rand(g, c)] if bias else [])))

    def row(call, i):
        return Call((call.args[0][i : i + 1], *call.args[1:]))

    n = math.prod(shape)
    return Case(name, make, row, batch=batch, work=Work(flops=2 * c * n, bytes=8 * n), **flags)


CASES = [
    case("glow", (3, 12, 4, 4), small=True, bench=True),
    case("no_bias", (2, 7, 3, 5), bias=False, small=True),
    case("features", (5, 33), small=True),
    case("one_channel", (2, 1, 9)),
    case("panels_across_images", (7, 4, 2, 2), small=True),
    case("many_channels", (2, 300, 3, 7)),
    case("most_channels", (2, 1024, 3), only_longer=True),
    case("video", (2, 6, 3, 4, 5)),
    case("empty_batch", (0, 4, 2, 2)),
    case("empty_image", (2, 4, 0)),
    case("image", (4, 48, 32, 32), bench=True),
    case("wide_image", (4, 192, 32, 32), bench=True, bench_only=True),
]

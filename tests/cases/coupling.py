from tests.cases import Call, Case, Work, first_rows, rand


def case(name, shape, *, additive=False, split="channel", flip=False, dtype_size=4, **options):
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}

    def make(g):
        c = shape[1]
        active = c if split == "checkerboard" else (c - c // 2 if flip else c // 2)
        half = (shape[0], active, *shape[2:])
        params = [rand(g, *half)] + ([] if additive else [rand(g, *half, scale=0.5)])
        return Call((rand(g, *shape), *params), {"split": split, "flip": flip, **options})

    n = 1
    for s in shape:
        n *= s
    return Case(name, make, first_rows, batch=shape[0], work=Work(flops=4 * n, bytes=3 * n * dtype_size), **flags)


CASES = [
    case("glow", (3, 12, 4, 4), small=True, bench=True, scale_map="sigmoid"),
    case("glow_inverse", (3, 12, 4, 4), small=True, scale_map="sigmoid", inverse=True),
    case("odd_channels", (2, 5, 3, 7), small=True),
    case("odd_channels_flip", (2, 5, 3, 7), flip=True, scale_map="tanh", clamp=1.5),
    case("one_channel", (2, 1, 4, 4)),
    case("nice_features", (4, 63), additive=True, small=True),
    case("nice_inverse", (4, 63), additive=True, inverse=True),
    case("checkerboard", (2, 3, 5, 7), split="checkerboard", small=True, scale_map="tanh"),
    case("checkerboard_flip_inverse", (2, 3, 8, 8), split="checkerboard", flip=True, inverse=True),
    case("checkerboard_features", (3, 17), split="checkerboard"),
    case("pieces", (2, 4, 131, 137), scale_map="sigmoid"),
    case("checkerboard_pieces", (1, 2, 190, 97), split="checkerboard", scale_map="sigmoid", inverse=True),
    case("checkerboard_wide", (8, 1, 2, 40000), split="checkerboard", scale_map="tanh"),
    case("empty_batch", (0, 4, 2, 2)),
    case("image", (8, 12, 64, 64), bench=True, scale_map="tanh"),
    case("image_inverse", (16, 48, 32, 32), bench_only=True, scale_map="sigmoid", inverse=True),
    case("large", (16, 48, 128, 128), bench_only=True, scale_map="sigmoid"),
    case("large_inverse", (16, 48, 128, 128), bench_only=True, scale_map="tanh", inverse=True),
]

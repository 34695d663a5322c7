from tests.cases import Call, Case, Work, first_rows, rand


def case(name, shape, *, additive=False, split="channel", flip=False, grad_y=True, grad_log_det=True, **options):
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}

    def make(g):
        c = shape[1]
        active = c if split == "checkerboard" else (c - c // 2 if flip else c // 2)
        half = (shape[0], active, *shape[2:])
        grads = rand(g, *shape) if grad_y else None, rand(g, shape[0]) if grad_log_det else None
        params = [rand(g, *half)] + ([] if additive else [rand(g, *half, scale=0.5)])
        return Call((*grads, rand(g, *shape), *params), {"split": split, "flip": flip, **options})

    n = 1
    for s in shape:
        n *= s
    statistics = (1,) if grad_log_det else ()
    work = Work(flops=8 * n, bytes=5 * n * 4)
    return Case(name, make, first_rows, batch=shape[0], work=work, statistics=statistics, **flags)


CASES = [
    case("glow", (3, 12, 4, 4), small=True, scale_map="sigmoid"),
    case("glow_from_input", (3, 12, 4, 4), small=True, scale_map="sigmoid", from_input=True),
    case("glow_inverse", (3, 12, 4, 4), scale_map="sigmoid", inverse=True, from_input=True),
    case("odd_channels", (2, 5, 3, 7), small=True),
    case("odd_channels_flip", (2, 5, 3, 7), flip=True, scale_map="tanh", clamp=1.5, inverse=True, small=True),
    case("one_channel", (2, 1, 4, 4)),
    case("nice_features", (4, 63), additive=True, small=True),
    case("nice_inverse", (4, 63), additive=True, inverse=True, grad_log_det=False),
    case("no_grad_y", (2, 4, 3, 5), scale_map="tanh", grad_y=False, small=True),
    case("checkerboard", (2, 3, 5, 7), split="checkerboard", small=True, scale_map="tanh"),
    case("checkerboard_flip_inverse", (2, 3, 8, 8), split="checkerboard", flip=True, inverse=True),
    case("checkerboard_features", (3, 17), split="checkerboard", from_input=True, grad_log_det=False),
    case("pieces", (2, 4, 131, 137), scale_map="sigmoid"),
    case("checkerboard_pieces", (1, 2, 190, 97), split="checkerboard", scale_map="sigmoid", inverse=True),
    case("empty_batch", (0, 4, 2, 2)),
    case("image", (8, 12, 64, 64), bench=True, scale_map="tanh"),
    case("large", (16, 48, 128, 128), bench_only=True, scale_map="sigmoid"),
]

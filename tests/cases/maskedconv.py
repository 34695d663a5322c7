from tests.cases import Call, Case, Work, rand


def case(name, shape, outputs, kernel, *, mask="B", bias=True, dtype_size=4, **options):
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}
    batch, inputs, height, width = shape
    kh, kw = kernel

    def make(g):
        scale = max(1, inputs * kh * kw / 2) ** -0.5
        vector = (rand(g, outputs),) if bias else ()
        call = Call((rand(g, *shape), rand(g, outputs, inputs, kh, kw, scale=scale), *vector), {"mask": mask})
        return Call(call.args, call.kwargs | options)

    def row(call, i):
        return Call((call.args[0][i : i + 1], *call.args[1:]), call.kwargs)

    taps = {"A": kh * kw // 2, "B": kh * kw // 2 + 1, "above": kh // 2 * kw, "above_or_at": (kh // 2 + 1) * kw}[mask]
    pixels = batch * (1 if "row" in options else height) * (1 if "col" in options else width)
    moved = pixels * (inputs + outputs) + outputs * inputs * taps
    work = Work(flops=2.0 * pixels * outputs * inputs * taps, bytes=moved * dtype_size)
    return Case(name, make, row, batch=batch, work=work, **flags)


CASES = [
    case("A", (2, 3, 5, 6), 4, (3, 3), mask="A", small=True),
    case("B", (2, 3, 5, 6), 17, (3, 5), small=True),
    case("above", (2, 2, 4, 3), 5, (5, 3), mask="above", bias=False),
    case("above_or_at", (1, 4, 6, 4), 9, (3, 3), mask="above_or_at"),
    case("first_layer", (3, 1, 8, 8), 33, (7, 7), mask="A"),
    case("pointwise", (2, 20, 3, 4), 18, (1, 1)),
    case("nothing_seen", (2, 3, 3, 3), 4, (1, 1), mask="A"),
    case("kernel_beyond_image", (2, 2, 2, 1), 3, (7, 5)),
    case("row", (3, 5, 6, 7), 20, (3, 3), row=4),
    case("pixel", (3, 5, 6, 7), 20, (3, 3), row=2, col=6, small=True),
    case("empty_batch", (0, 3, 4, 4), 5, (3, 3)),
    case("empty_batch_pixel", (0, 3, 4, 4), 5, (3, 3), row=0, col=0),
    case("digits", (8, 32, 8, 8), 64, (3, 3), bench=True),
    case("digits_pixel", (8, 32, 8, 8), 64, (3, 3), row=4, col=4, bench=True),
    case("one_pixel", (1, 128, 32, 32), 256, (3, 3), row=9, col=9, bench=True, bench_only=True),
    case("image", (4, 128, 32, 32), 128, (3, 3), bench=True, bench_only=True),
]

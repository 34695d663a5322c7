from math import prod

from tests.cases import Call, Case, Work, rand


def case(name, shape, outputs, *, bias=True, residual=False, activation=None, dtype_size=4, **flags):
    k, rows = shape[-1], prod(shape[:-1])

    def make(g):
        options = {"activation": activation}
        if residual:
            options["residual"] = rand(g, *shape[:-1], outputs)
        vector = (rand(g, outputs),) if bias else ()
        return Call((rand(g, *shape), rand(g, outputs, k, scale=max(k, 1) ** -0.5), *vector), options)

    def row(call, i):
        options = {n: o[i : i + 1] if n == "residual" else o for n, o in call.kwargs.items()}
        return Call((call.args[0][i : i + 1], *call.args[1:]), options)

    moved = rows * k + outputs * k + rows * outputs * (2 if residual else 1)
    flags["without"] = ("cuda", "triton") if rows > 16 else ()
    work = Work(flops=2.0 * rows * k * outputs, bytes=moved * dtype_size)
    batch = shape[0] if len(shape) > 1 else 1
    return Case(name, make, row if len(shape) > 1 else None, batch=batch, work=work, **flags)


CASES = [
    case("plain", (5, 33), 7, bias=False, small=True),
    case("vector", (40,), 21),
    case("relu", (3, 4, 20), 19, activation="relu", small=True),
    case("gelu_residual", (2, 3, 72), 40, activation="gelu", residual=True, small=True),
    case("gelu_tanh", (7, 48), 33, activation="gelu_tanh"),
    case("silu", (6, 17), 16, activation="silu", residual=True),
    case("tanh", (4, 64), 31, activation="tanh"),
    case("sigmoid", (9, 64), 18, activation="sigmoid"),
    case("one_of_all", (1, 1), 1, small=True),
    case("no_features", (3, 0), 5),
    case("no_outputs", (3, 5), 0),
    case("empty_batch", (0, 4, 8), 6),
    case("many_rows", (203, 80), 131, residual=True),
    case("tall", (49, 600), 290, activation="silu"),
    case("many_outputs", (13, 100), 520, activation="gelu"),
    case("token", (1, 768), 3072, activation="gelu", bench=True),
    case("batch", (8, 768), 3072, bench=True, bench_only=True),
    case("prompt", (512, 768), 3072, activation="gelu", bench=True, bench_only=True),
    case("prompt_down", (512, 3072), 768, residual=True, bench=True, bench_only=True),
]

from math import prod

from tests.cases import Call, Case, Work, rand


def case(name, shape, entries, *, dtype_size=4, **flags):
    d, rows = shape[-1], prod(shape[:-1])

    def make(g):
        return Call((rand(g, *shape), rand(g, entries, d)))

    def row(call, i):
        return Call((call.args[0][i : i + 1], call.args[1]))

    work = Work(flops=2.0 * rows * entries * d, bytes=dtype_size * (2 * rows + entries) * d + 8 * rows)
    batch = shape[0] if len(shape) > 1 else 1
    return Case(name, make, row if len(shape) > 1 else None, batch=batch, work=work, **flags)


CASES = [
    case("small", (3, 4, 8), 20, small=True),
    case("vector", (33,), 50),
    case("odd", (7, 5), 37, small=True),
    case("one_entry", (4, 16), 1),
    case("one_feature", (5, 1), 64),
    case("empty_batch", (0, 3, 4), 5),
    case("many_rows", (2, 120, 64), 130),
    case("images", (8, 64, 64), 512, bench=True),
    case("large", (2, 512, 64), 2048, bench=True, bench_only=True),
]

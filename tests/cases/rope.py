import torch

from tests.cases import Call, Case, Work, rand


def row(call, i):
    x, *tables = call.args
    kwargs = dict(call.kwargs)
    if "positions" in kwargs:
        kwargs["positions"] = kwargs["positions"][i : i + 1]
    return Call((x[i : i + 1], *tables), kwargs)


def case(name, shape, *, positions=None, **options):
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}
    batch, _, rows, dim = shape

    def make(g):
        room = rows + max(positions or (0,))
        angle = torch.arange(room).double()[:, None] * 10 ** -torch.linspace(0, 3, dim // 2).double()
        kwargs = dict(options)
        if positions:
            kwargs["positions"] = torch.tensor(positions, dtype=torch.int32)
        return Call((rand(g, *shape), angle.cos(), angle.sin()), kwargs)

    n = shape[0] * shape[1] * shape[2] * shape[3]
    return Case(name, make, row, batch=batch, work=Work(flops=3 * n, bytes=8 * n), **flags)


CASES = [
    case("halves", (2, 3, 7, 16), small=True),
    case("interleaved", (2, 3, 7, 16), interleaved=True, small=True),
    case("positions", (3, 2, 5, 72), positions=(4, 0, 31)),
    case("odd_half_interleaved", (2, 1, 4, 10), positions=(2, 3), interleaved=True),
    case("pair", (1, 1, 3, 2)),
    case("empty_batch", (0, 2, 3, 8)),
    case("no_rows", (2, 2, 0, 8)),
    case("large", (4, 32, 2048, 64), bench=True, bench_only=True),
    case("gpt", (1, 12, 1024, 64), bench=True),
]

import torch

from tests.cases import Call, Case, Work, first_rows, rand


def case(name, shape, **flags):
    def make(g):
        lse_a, lse_b = rand(g, *shape[:-1], scale=3), rand(g, *shape[:-1], scale=3)
        flat = lse_a.view(-1), lse_b.view(-1)
        flat[0][::5] = -torch.inf
        flat[1][::7] = -torch.inf
        return Call((rand(g, *shape), lse_a, rand(g, *shape), lse_b))

    n = 1
    for s in shape:
        n *= s
    batch = shape[0] if len(shape) > 1 else 1
    row = first_rows if len(shape) > 1 else None
    return Case(name, make, row, batch=batch, statistics=(1, 3), work=Work(flops=3 * n, bytes=12 * n), **flags)


CASES = [
    case("prefill", (2, 3, 40, 64), small=True),
    case("odd", (3, 5, 17)),
    case("one_row", (9,)),
    case("empty", (0, 2, 8)),
    case("long", (1, 12, 1024, 64), bench=True),
]

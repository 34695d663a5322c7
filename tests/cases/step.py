import math

import torch

from tests.cases import Call, Case, Work, rand

X, M, P, H1, H2, H3, LAST, Z = range(8)


def row_of(call, i):
    """Row i alone, by a table that has its step alone: what stands in a table's other rows must not matter."""
    table, index, *tensors = call.args

    def cut(t):
        return t[i : i + 1]

    rest = Call(tuple(tensors), call.kwargs).map(cut)
    return Call((table[index : index + 1], 0, *rest.args), rest.kwargs)


def row_of_seeded(call, i):
    """Row i alone with the whole table: the index is part of the noise."""
    table, index, *tensors = call.args
    rest = Call(tuple(tensors), call.kwargs).map(lambda t: t[i : i + 1])
    return Call((table, index, *rest.args), rest.kwargs)


def case(
    name, shape, *, rows, clip=math.inf, guidance=None, history=0, last=False, noise=False, ab=(1.0, 0.0),
    seeds=False, place=None, **flags,
):  # fmt: skip
    """`rows`: the outputs' coefficients as {column: value}; `place`: the dtype of an index that is a tensor."""

    def make(g):
        table = rand(g, 5, 4, 8)
        table[2] = 0
        table[2, 0, :4] = torch.tensor([*ab, clip, guidance or 1.0])
        for k, row in enumerate(rows):
            for column, value in row.items():
                table[2, 1 + k, column] = value
        x, output = rand(g, *shape), rand(g, *shape)
        uncond = None if guidance is None else rand(g, *shape)
        kwargs = {"outputs": len(rows), "history": tuple(rand(g, *shape) for _ in range(history))}
        if last:
            kwargs["last"] = rand(g, *shape)
        if noise:
            kwargs["noise"] = rand(g, *shape)
        if seeds:
            kwargs["seeds"] = torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=g)
        return Call((table, 2 if place is None else torch.tensor([2], dtype=place), x, output, uncond), kwargs)

    n = math.prod(shape)
    moved = 2 + (guidance is not None) + history + last + noise + len(rows)
    return Case(
        name,
        make,
        row_of if place is None and not seeds else row_of_seeded,
        batch=shape[0],
        work=Work(flops=16 * n, bytes=4 * moved * n),
        dtypes=(torch.float32,),
        **flags,
    )


DDIM = {"ab": (1.7, -1.4), "rows": [{X: 0.3, P: 0.65}]}

CASES = [
    case("ddim_guided", (3, 4, 8, 8), guidance=3.0, clip=1.0, small=True, bench=True, **DDIM),
    case("ddpm", (2, 1, 5, 7), ab=(1.7, -1.4), rows=[{X: 0.3, P: 0.65, Z: 0.2}], clip=1.0, noise=True, small=True),
    case("dpmpp_2m", (2, 3, 8, 9), ab=(1.2, -0.7), rows=[{X: 0.6, P: 0.9, H1: -0.3}, {P: 1.0}], history=1, small=True),
    case(
        "everything", (3, 2, 7, 11), guidance=-0.5, clip=0.8, ab=(0.9, 0.4), history=3, last=True, noise=True,
        small=True,
        rows=[{c: 0.1 * (c + 1) for c in range(8)}, {LAST: 1.0, H3: -2.0}, {M: 0.5, H2: 0.25}],
    ),
    case("index_on_device", (2, 3, 5), guidance=2.0, place=torch.int32, small=True, **DDIM),
    case("seeds", (3, 2, 4, 4), rows=[{X: 0.3, P: 0.65, Z: 0.2}], seeds=True, small=True),
    case("seeds_ragged", (2, 3, 5, 7), rows=[{X: 0.5}, {Z: 2.0}], seeds=True, place=torch.int64),
    case("velocity", (4, 63), rows=[{X: 1.0, M: -0.04}], ab=(0.0, 0.0)),
    case("one_element", (1,), rows=[{X: 1.0, P: 2.0}]),
    case("empty_batch", (0, 4, 2), rows=[{X: 1.0, P: 2.0}]),
    case("latents", (8, 4, 64, 64), guidance=4.0, bench=True, **DDIM),
    case("large", (64, 4, 256, 256), guidance=4.0, bench=True, bench_only=True, **DDIM),
    case("million", (4, 4, 256, 256), guidance=4.0, bench=True, bench_only=True, **DDIM),
]  # fmt: skip

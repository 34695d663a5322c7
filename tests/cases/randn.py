import math

import torch

from tests.cases import Call, Case, Work, first_rows


def case(name, batch, shape, *, offset=0, **flags):
    def make(g):
        return Call((torch.randint(-(2**63), 2**63 - 1, (batch,), generator=g), shape), {"offset": offset})

    n = batch * math.prod(shape)
    # About 50 float64 operations a normal, 20 integer ones a word.
    work = Work(flops=50 * n, bytes=4 * n)
    return Case(name, make, first_rows, batch=batch, work=work, dtypes=(torch.float32,), **flags)


CASES = [
    case("digits", 3, (1, 8, 8), small=True, bench=True),
    case("ragged", 2, (3, 5, 7), small=True, offset=17),
    case("scalar", 4, (), small=True),
    case("wide_offset", 2, (130,), offset=2**62 + 3),
    case("empty_batch", 0, (4, 4)),
    case("empty_row", 2, (0, 3)),
    case("latents", 8, (4, 64, 64), bench=True),
    case("million", 4, (4, 256, 256), bench=True, bench_only=True),
]

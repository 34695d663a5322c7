from functools import partial
from math import prod

import torch

from hexad_kernels import pack, quantize
from tests.cases import Call, Case, Work, rand

# Of a weight. bench counts 4 bytes as the size of x's dtype, so bfloat16 with bfloat16 says 32 too.
BITS = {"float32": 32, "bfloat16": 32, "int8": 8, "int4": 5}
FORMS = {
    "float32": pack,
    "bfloat16": lambda w: pack(w.bfloat16()),
    "int8": partial(quantize, form="int8"),
    "int4": partial(quantize, form="int4"),
}


def case(form, name, shape, rows, *, bias=True, residual=False, activation=None, **flags):
    k, count = shape[-1], prod(shape[:-1])
    outputs = rows // 2 if str(activation).endswith("gate") else rows

    def make(g):
        weight = FORMS[form](rand(g, rows, k, scale=max(k, 1) ** -0.5).float())
        options = {"form": form, "rows": rows, "activation": activation}
        if residual:
            options["residual"] = rand(g, *shape[:-1], outputs)
        vector = (rand(g, rows),) if bias else ()
        return Call((rand(g, *shape), weight.panels, *vector), options)

    def row(call, i):
        options = {n: o[i : i + 1] if n == "residual" else o for n, o in call.kwargs.items()}
        return Call((call.args[0][i : i + 1], *call.args[1:]), options)

    moved = 4 * (count * k + count * outputs * (2 if residual else 1)) + rows * k * BITS[form] / 8
    without = ("cuda",) if count > 16 or form not in ("int8", "int4") else ()
    flags["without"] = (*without, "triton") if count > 8 else without
    work = Work(flops=2.0 * count * rows * k, bytes=moved)
    return Case(f"{form}_{name}", make, row if len(shape) > 1 else None, batch=shape[0], work=work, **flags)


FP32, BF16 = (torch.float32,), (torch.bfloat16,)
CASES = [
    made
    for form in FORMS
    for made in (
        case(form, "plain", (5, 33), 7, bias=False, small=True),
        case(form, "vector", (40,), 21),
        case(form, "residual", (2, 3, 72), 40, activation="gelu", residual=True, small=True),
        case(form, "gate", (6, 65), 96, activation="silu_gate", residual=True),
        case(form, "one_of_all", (1, 1), 1, small=True),
        case(form, "no_features", (3, 0), 5),
        case(form, "no_outputs", (3, 5), 0),
        case(form, "empty_batch", (0, 4, 8), 6),
        case(form, "eight_rows", (8, 300), 131),
        case(form, "many_rows", (203, 80), 131, residual=True),
        case(form, "tall", (33, 600), 290),
        case(form, "long_rows", (3, 4100), 33),
        case(form, "many_outputs", (13, 600), 520, activation="gelu"),
    )
] + [
    case("float32", "token", (1, 4096), 11008, bench_only=True, dtypes=FP32),
    case("bfloat16", "token", (1, 4096), 11008, bench_only=True, dtypes=BF16),
    case("int8", "token", (1, 4096), 11008, bench_only=True, dtypes=FP32),
    case("int4", "token", (1, 4096), 11008, bench_only=True, dtypes=FP32),
    case("float32", "prompt", (512, 768), 3072, activation="gelu", bench_only=True, dtypes=FP32),
    case("int8", "prompt", (512, 768), 3072, activation="gelu", bench_only=True, dtypes=BF16),
]

from math import prod

from tests.cases import Call, Case, Work, rand


def case(name, shape, *, kind="layer", weight=True, bias=True, modulate=False, offset=0.0, dtype_size=4, **options):
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}
    features = shape[1 if kind == "group" else -1]

    def make(g):
        given = {"kind": kind, **options}
        given["weight"] = rand(g, features) if weight else None
        given["bias"] = rand(g, features) if bias else None
        if modulate:
            given["scale"], given["shift"] = (rand(g, shape[0], features, scale=0.3) for _ in range(2))
        return Call((rand(g, *shape) + offset,), given)

    def row(call, i):
        given = {n: v[i : i + 1] if n in ("scale", "shift") else v for n, v in call.kwargs.items()}
        return Call((call.args[0][i : i + 1],), given)

    n = prod(shape)
    batch = shape[0] if len(shape) > 1 else 1
    work = Work(flops=8.0 * n, bytes=2.0 * n * dtype_size)
    return Case(name, make, row if len(shape) > 1 else None, batch=batch, work=work, **flags)


CASES = [
    case("layer", (3, 5, 72), small=True),
    case("layer_plain", (4, 64), weight=False, bias=False, small=True),
    case("layer_vector", (100,)),
    case("layer_far_from_zero", (3, 768), offset=300.0),
    case("layer_long", (2, 5000)),
    case("layer_one_feature", (6, 1)),
    case("adaptive", (3, 7, 48), weight=False, bias=False, modulate=True, small=True),
    case("adaptive_affine_silu", (2, 2, 3, 33), modulate=True, activation="silu"),
    case("rms", (5, 80), kind="rms", bias=False, small=True),
    case("rms_adaptive", (4, 3, 65), kind="rms", modulate=True, eps=1e-6),
    case("group_silu", (2, 8, 4, 5), kind="group", num_groups=4, activation="silu", small=True),
    case("group_of_one", (2, 6, 7), kind="group", num_groups=6),
    case("group_no_space", (3, 12), kind="group", num_groups=3),
    case("group_all_adaptive", (2, 5, 3, 3), kind="group", num_groups=1, modulate=True, activation="silu"),
    case("empty_batch", (0, 3, 16)),
    case("no_features", (3, 0)),
    case("no_space", (2, 4, 0), kind="group", num_groups=2),
    case("transformer", (512, 768), bench=True),
    case("large", (8192, 2048), bench=True, bench_only=True),
    case("large_rms", (8192, 2048), kind="rms", bias=False, bench=True, bench_only=True),
    case("transformer_rms", (512, 768), kind="rms", bias=False, bench=True, bench_only=True),
    case("vae", (1, 128, 128, 128), kind="group", num_groups=32, activation="silu", bench_only=True),
    case("unet", (4, 128, 64, 64), kind="group", num_groups=32, activation="silu", bench=True, bench_only=True),
]

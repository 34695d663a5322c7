import torch

from tests.cases import Call, Case, Work, rand

ALL = (torch.float32, torch.bfloat16, torch.float16)


def row(call, i):
    batch = len(call.args[0])
    kwargs = dict(call.kwargs)
    mask = kwargs.get("mask")
    if mask is not None and mask.ndim == 4 and mask.shape[0] == batch:
        kwargs["mask"] = mask[i : i + 1]
    return Call(tuple(t[i : i + 1] for t in call.args), kwargs)


def blocks(rows, keys, size):
    """Rows see the keys of their own block, and every third block from the start."""
    row, key = torch.arange(rows)[:, None] // size, torch.arange(keys) // size
    return (row == key) | ((key % 3 == 0) & (key < row))


def case(name, q, kv=None, *, value_dim=None, mask=None, alibi=False, sinks=False, dtype_size=4, **options):
    """q (B, Hq, Sq, D), kv (Hkv, Skv); mask: a shape and a kind, "bool" or "add", or a tensor."""
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only", "without", "dtypes") if k in options}
    batch, heads, rows, dim = q
    kv_heads, keys = kv or (heads, rows)
    value_dim = value_dim or dim

    def make(g):
        kwargs = {"return_lse": True, **options}
        qkv = rand(g, *q), rand(g, batch, kv_heads, keys, dim), rand(g, batch, kv_heads, keys, value_dim)
        if alibi:
            kwargs["alibi_slopes"] = 2.0 ** -torch.arange(1, heads + 1, dtype=torch.float64)
        if sinks:
            kwargs["sinks"] = rand(g, heads)
        if isinstance(mask, torch.Tensor):
            kwargs["mask"] = mask
        elif mask:
            shape, kind = mask
            draw = rand(g, *shape)
            kwargs["mask"] = draw > -0.5 if kind == "bool" else draw.masked_fill(draw < -1.5, -torch.inf)
        return Call(qkv, kwargs)

    pairs = batch * heads * rows * keys / (2 if options.get("causal") else 1)
    size = batch * (heads * rows * (dim + value_dim) + kv_heads * keys * (dim + value_dim)) * dtype_size
    return Case(
        name, make, row, batch=batch, statistics=("alibi_slopes", "sinks"),
        work=Work(flops=2 * pairs * (dim + value_dim), bytes=size), **flags,
    )  # fmt: skip


CASES = [
    case("tiny", (2, 4, 5, 8), (2, 7), small=True),
    case("causal", (2, 2, 70, 64), causal=True, small=True),
    case("causal_shorter_keys", (1, 2, 12, 16), (2, 5), causal=True),
    case("causal_longer_keys", (2, 6, 9, 40), (2, 150), causal=True),
    case("upper_left", (1, 2, 20, 16), (1, 33), causal="upper_left", small=True),
    case("window", (2, 2, 130, 32), causal=True, window=50),
    case("window_both_sides", (1, 3, 80, 24), (1, 100), window=(7, 70)),
    case("softcap", (1, 2, 33, 64), causal=True, softcap=3.0, scale=0.5, small=True),
    case("bool_mask", (2, 4, 40, 16), (2, 90), mask=((2, 1, 40, 90), "bool"), small=True),
    case("padding_mask", (3, 2, 20, 72), (2, 70), mask=((3, 1, 1, 70), "bool")),
    case("additive_mask", (2, 2, 17, 32), (2, 66), mask=((2, 17, 66), "add"), causal=True),
    case("bias_per_row", (2, 2, 17, 16), (2, 66), mask=((17, 1), "add")),
    case(
        "everything", (2, 6, 50, 80), (3, 70), value_dim=48, mask=((2, 1, 1, 70), "add"), causal=True, window=(40, 3),
        softcap=9.0,
    ),
    case("head_dim_1", (1, 2, 9, 1), (1, 65), value_dim=3),
    case("head_dim_256", (1, 2, 30, 256), (1, 70), causal=True),
    case("multi_query", (2, 7, 13, 72), (1, 65), value_dim=80),
    case("one_row", (3, 4, 1, 64), (2, 129), causal=True),
    case("no_keys", (1, 2, 3, 8), (2, 0), causal=True),
    case("no_rows", (2, 2, 0, 8), (2, 5)),
    case("empty_batch", (0, 2, 3, 8), (2, 5)),
    case("blocks", (1, 2, 150, 64), mask=blocks(150, 150, 20)),
    case("row_blocks_and_tiles", (2, 3, 97, 33), (1, 129), value_dim=65, causal=True),
    case("wide_heads", (1, 2, 50, 530), (1, 66), value_dim=520, causal=True, without=("triton",)),
    case("gpt_prefill", (1, 12, 1024, 64), causal=True, bench=True),
    case("dit", (2, 6, 256, 72), bench=True, bench_only=True),
    case("llama_prefill", (1, 32, 2048, 128), (8, 2048), causal=True, bench=True, bench_only=True),
    case("full_128", (1, 8, 1024, 128), bench=True, bench_only=True),
    case("short", (8, 12, 128, 64), causal=True, bench=True, bench_only=True),
    *(case(f"dim_{dim}", (1, 8, 1024, dim), bench=True, bench_only=True) for dim in (40, 80, 96, 256)),
    case("masked", (1, 8, 1024, 64), mask=((1024, 1024), "bool"), bench=True, bench_only=True),
]  # fmt: skip

# In float16, too.
CASES += [
    case("alibi", (2, 4, 70, 16), (2, 150), causal=True, alibi=True, dtypes=ALL),
    case("alibi_both_sides", (1, 4, 50, 40), (4, 90), alibi=True, softcap=5.0, window=(60, 9), dtypes=ALL),
    case("sinks", (2, 4, 70, 64), (1, 70), causal=True, window=30, sinks=True, dtypes=ALL),
    case("sinks_without_keys", (2, 4, 9, 64), (2, 4), causal=True, sinks=True, dtypes=ALL),
    case(
        "everything_at_once",
        (2, 4, 40, 24),
        (2, 90),
        mask=((2, 1, 40, 90), "add"),
        alibi=True,
        sinks=True,
        softcap=4.0,
        dtypes=ALL,
    ),
    case("half", (2, 4, 70, 40), (2, 150), dtypes=ALL),
    case("half_masked", (2, 4, 70, 33), (2, 150), value_dim=65, mask=((70, 150), "bool"), causal=True, dtypes=ALL),
]

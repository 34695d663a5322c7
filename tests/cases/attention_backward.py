import torch

import hexad_kernels
from tests.cases import Call, Case, Work, rand


def row(call, i):
    batch = len(call.args[0])
    kwargs = dict(call.kwargs)
    mask = kwargs.get("mask")
    if mask is not None and mask.ndim == 4 and mask.shape[0] == batch:
        kwargs["mask"] = mask[i : i + 1]
    return Call(tuple(None if t is None else t[i : i + 1] for t in call.args), kwargs)


def case(name, q, kv=None, *, value_dim=None, mask=None, grad_lse=True, **options):
    """q (B, Hq, Sq, D), kv (Hkv, Skv); mask: a shape and a kind, "bool" or "add"."""
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}
    batch, heads, rows, dim = q
    kv_heads, keys = kv or (heads, rows)
    value_dim = value_dim or dim

    def make(g):
        kwargs = dict(options)
        q_, k, v = rand(g, *q), rand(g, batch, kv_heads, keys, dim), rand(g, batch, kv_heads, keys, value_dim)
        if mask:
            shape, kind = mask
            draw = rand(g, *shape)
            kwargs["mask"] = draw > -0.5 if kind == "bool" else draw.masked_fill(draw < -1.5, -torch.inf)
        if flags.get("bench_only"):
            q_, k, v = q_.float(), k.float(), v.float()
            out, lse = hexad_kernels.attention(q_, k, v, return_lse=True, **kwargs)
        else:
            with hexad_kernels.backend("reference"):
                out, lse = hexad_kernels.attention(q_, k, v, return_lse=True, **kwargs)
        grads = rand(g, *out.shape), rand(g, *lse.shape) if grad_lse else None
        return Call((grads[0], q_, k, v, out, lse, grads[1]), kwargs)

    pairs = batch * heads * rows * keys / (2 if options.get("causal") else 1)
    size = 2 * batch * (heads * rows * (dim + value_dim) + kv_heads * keys * (dim + value_dim)) * 4
    work = Work(flops=2 * pairs * (3 * dim + 2 * value_dim), bytes=size)
    return Case(name, make, row, batch=batch, work=work, statistics=(5, 6) if grad_lse else (5,), **flags)


CASES = [
    case("tiny", (2, 4, 5, 8), (2, 7), small=True),
    case("causal", (2, 2, 150, 64), causal=True, small=True),
    case("full_tiles", (2, 2, 256, 64), (2, 128), grad_lse=False),
    case("causal_shorter_keys", (1, 2, 12, 16), (2, 5), causal=True),
    case("causal_longer_keys", (2, 6, 9, 40), (2, 150), causal=True),
    case("upper_left", (1, 2, 20, 16), (1, 33), causal="upper_left"),
    case("window", (2, 2, 130, 32), causal=True, window=50),
    case("several_tiles", (2, 2, 290, 40), (1, 530), value_dim=72, causal=True, window=260),
    case("several_tiles_masked", (1, 2, 270, 96), (1, 300), mask=((1, 1, 270, 300), "bool")),
    case("window_both_sides", (1, 3, 190, 24), (1, 200), window=(7, 70)),
    case("softcap", (1, 2, 33, 64), causal=True, softcap=3.0, scale=0.5, small=True),
    case("softcap_full_tiles", (1, 2, 64, 32), (1, 128), softcap=2.0),
    case("bool_mask", (2, 4, 40, 16), (2, 90), mask=((2, 1, 40, 90), "bool"), small=True),
    case("padding_mask", (3, 2, 20, 72), (2, 70), mask=((3, 1, 1, 70), "bool")),
    case("additive_mask", (2, 2, 17, 32), (2, 66), mask=((2, 17, 66), "add"), causal=True),
    case(
        "everything", (2, 6, 50, 80), (3, 70), value_dim=48, mask=((2, 1, 1, 70), "add"), causal=True, window=(40, 3),
        softcap=9.0,
    ),
    case("head_dim_1", (1, 2, 9, 1), (1, 65), value_dim=3),
    case("head_dim_256", (1, 2, 30, 256), (1, 70), causal=True),
    case("multi_query", (2, 7, 13, 71), (1, 65), value_dim=81),
    case("one_row", (3, 4, 1, 64), (2, 129), causal=True),
    case("nine_rows", (1, 2, 9, 64), (2, 129), causal=True),
    case("no_keys", (1, 2, 3, 8), (2, 0), causal=True),
    case("no_rows", (2, 2, 0, 8), (2, 5)),
    case("empty_batch", (0, 2, 3, 8), (2, 5)),
    case("gpt", (1, 12, 1024, 64), causal=True, grad_lse=False, bench=True, bench_only=True),
    case("encoder", (8, 12, 128, 64), grad_lse=False, bench=True, bench_only=True),
    case("llama_training", (1, 4, 2048, 128), causal=True, grad_lse=False, bench=True, bench_only=True),
]  # fmt: skip

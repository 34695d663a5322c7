import torch

from tests.cases import Call, Case, Work, rand

ALL = (torch.float32, torch.bfloat16, torch.float16)


def starts(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def case(name, lengths_q, lengths_k, heads, dim, *, value_dim=None, by_row=True, alibi=False, sinks=False, **options):
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only", "dtypes") if k in options}
    heads, kv_heads = heads
    value_dim = value_dim or dim
    at_q, at_k = starts(lengths_q), starts(lengths_k)

    def make(g):
        q = rand(g, sum(lengths_q), heads, dim)
        k, v = rand(g, sum(lengths_k), kv_heads, dim), rand(g, sum(lengths_k), kv_heads, value_dim)
        extra = {"alibi_slopes": rand(g, heads).abs()} if alibi else {}
        extra |= {"sinks": rand(g, heads)} if sinks else {}
        return Call((q, k, v, at_q, at_k), {"return_lse": not by_row, **options, **extra})

    def row(call, i):
        q, k, v, _, _ = call.args
        keys = slice(at_k[i], at_k[i + 1])
        alone = starts(lengths_q[i : i + 1]), starts(lengths_k[i : i + 1])
        return Call((q[at_q[i] : at_q[i + 1]], k[keys], v[keys], *alone), call.kwargs)

    pairs = sum(a * b for a, b in zip(lengths_q, lengths_k)) * heads / (2 if options.get("causal") else 1)
    size = 4 * (dim + value_dim) * (sum(lengths_q) * heads + sum(lengths_k) * kv_heads)
    return Case(
        name, make, row if by_row else None, lambda out, i: out[at_q[i] : at_q[i + 1]], batch=len(lengths_q),
        statistics=("alibi_slopes", "sinks"), work=Work(flops=2 * pairs * (dim + value_dim), bytes=size), **flags,
    )  # fmt: skip


CASES = [
    case("causal", (5, 70, 1, 33), (5, 70, 1, 33), (4, 2), 16, causal=True, small=True),
    case("longer_keys", (3, 40), (90, 65), (2, 2), 72, value_dim=40, causal=True, window=60, softcap=4.0),
    case("upper_left", (9, 4), (6, 30), (2, 1), 8, causal="upper_left"),
    case("with_lse", (7, 0, 20), (30, 4, 0), (6, 2), 64, by_row=False, small=True),
    case("no_sequences", (), (), (2, 1), 8, by_row=False),
    case("alibi_and_sinks", (5, 70, 1), (9, 70, 1), (4, 2), 16, causal=True, alibi=True, sinks=True, dtypes=ALL),
    case("half", (5, 70, 33), (5, 90, 33), (4, 2), 40, causal=True, dtypes=ALL),
    case("mixed_batch", (512, 64, 200, 1), (512, 64, 200, 900), (12, 12), 64, causal=True, bench=True, bench_only=True),
]  # fmt: skip

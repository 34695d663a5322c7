import torch

from tests.cases import Call, Case, Work, first_rows, rand

PER_CACHE = ("k_scale", "v_scale")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PER_HEAD = ("alibi_slopes", "sinks")


def contiguous_row(call, i):
    rows = first_rows(call, i)
    return Call(rows.args, rows.kwargs | {name: call.kwargs[name] for name in PER_HEAD if name in call.kwargs})


def paged_row(call, i):
    q, k, v, lengths = call.args
    table = call.kwargs["block_table"][i : i + 1]
    return Call((q[i : i + 1], k, v, lengths[i : i + 1]), {**call.kwargs, "block_table": table})


def case(
    name, heads, dim, lengths, *, room=None, page=None, value_dim=None, int8=False, float8=None, alibi=False,
    sinks=False, **options,
):  # fmt: skip
    """heads (Hq, Hkv); `page`: a paged cache whose pages lie shuffled, with one page to spare; `float8`: its dtype."""
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}
    heads, kv_heads = heads
    value_dim, batch = value_dim or dim, len(lengths)
    room = room or max(lengths, default=1)

    def make(g):
        kwargs = {"return_lse": True, **options}
        pages, size = batch, room
        if page:
            each = -(-room // page)
            pages, size = batch * each + 1, page
            order = torch.randperm(pages, generator=g)[: batch * each]
            kwargs["block_table"] = order.to(torch.int32).view(batch, each)
        k, v = rand(g, pages, kv_heads, size, dim), rand(g, pages, kv_heads, size, value_dim)
        if int8:
            k, v = ((40 * t).round().clamp(-127, 127).to(torch.int8) for t in (k, v))
        if float8:
            k, v = ((40 * t).clamp(-448, 448).to(float8) for t in (k, v))
        if int8 or float8:
            kwargs |= {name: rand(g, pages, kv_heads, size, scale=0.02).abs() for name in PER_CACHE}
        if alibi:
            kwargs["alibi_slopes"] = 2.0 ** -torch.linspace(1, 8, heads).double()
        if sinks:
            kwargs["sinks"] = rand(g, heads, scale=3.0)
        return Call((rand(g, batch, heads, dim), k, v, torch.tensor(lengths, dtype=torch.int32)), kwargs)

    keys = sum(lengths)
    size = dim + value_dim
    # The benchmark counts 4 bytes for an element of float32: a quantised cache has one, and 8 of scales.
    moved = kv_heads * keys * (size + 8 if int8 or float8 else 4 * size)
    work = Work(flops=2 * heads * keys * size, bytes=moved)
    row = paged_row if page else contiguous_row
    dtypes = {"dtypes": (torch.float32,)} if int8 and flags.get("bench_only") else {}
    if float8:
        flags["without"] = ("cpu",)
    return Case(name, make, row, batch=batch, work=work, statistics=PER_CACHE + PER_HEAD, **dtypes, **flags)


CASES = [
    case("contiguous", (4, 2), 16, (5, 70, 1), room=80, small=True),
    case("paged", (4, 4), 64, (5, 70, 129), page=16, small=True),
    case("odd_pages", (6, 2), 40, (33, 1, 200), page=7, value_dim=24),
    case("window", (2, 1), 32, (10, 150, 64), window=40, small=True),
    case("paged_window_softcap", (3, 3), 72, (10, 150, 65), page=32, window=40, softcap=2.0, scale=0.3),
    case("empty_sequence", (2, 2), 8, (0, 3)),
    case("big_group", (100, 1), 80, (65,)),
    case("empty_batch", (2, 2), 8, ()),
    case("every_size_of_group", (7, 1), 64, (129, 64, 1), small=True),
    case("groups_over_registers", (26, 2), 96, (130, 5)),
    case("long_tail_of_dims", (3, 1), 47, (66, 3), value_dim=33),
    case("alibi", (4, 2), 32, (5, 150, 64), alibi=True),
    case("alibi_window_softcap_paged", (6, 2), 40, (70, 1, 129), page=7, window=50, softcap=2.0, alibi=True),
    case("sinks", (4, 2), 32, (0, 150, 64), sinks=True),
    case("alibi_and_sinks", (20, 1), 72, (3, 65), alibi=True, sinks=True),
    case("int8", (4, 2), 64, (5, 150, 129), int8=True),
    case("int8_paged", (5, 1), 80, (70, 0, 64), page=16, value_dim=40, int8=True),
    case("int8_odd_window_sinks", (9, 1), 47, (70, 130), page=7, window=33, value_dim=21, int8=True, sinks=True),
    case("int8_alibi_softcap", (2, 2), 128, (64, 100), int8=True, alibi=True, softcap=3.0),
    case("float8", (4, 2), 32, (5, 130), small=True, float8=E4M3),
    case("float8_odd_window_sinks", (9, 1), 47, (70, 130), page=7, window=33, value_dim=21, float8=E4M3, sinks=True),
    case("float8_e5m2_alibi_softcap", (2, 2), 128, (64, 0, 100), float8=E5M2, alibi=True, softcap=3.0),
    case("gpt", (12, 12), 64, (1024,) * 8, bench=True),
    case("llama_alone", (32, 8), 128, (8192,), bench=True, bench_only=True),
    case("llama_paged", (32, 8), 128, (4096,) * 4, page=16, bench=True, bench_only=True),
    case("llama_paged_int8", (32, 8), 128, (4096,) * 4, page=16, int8=True, bench=True, bench_only=True),
    case("llama_paged_float8", (32, 8), 128, (4096,) * 4, page=16, float8=E4M3, bench=True, bench_only=True),
]

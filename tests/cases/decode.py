import torch

from tests.cases import Call, Case, Work, first_rows, rand


def paged_row(call, i):
    q, k, v, lengths = call.args
    table = call.kwargs["block_table"][i : i + 1]
    return Call((q[i : i + 1], k, v, lengths[i : i + 1]), {**call.kwargs, "block_table": table})


def case(name, heads, dim, lengths, *, room=None, page=None, value_dim=None, **options):
    """heads (Hq, Hkv); `page`: a paged cache whose pages lie shuffled, with one page to spare."""
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
        return Call((rand(g, batch, heads, dim), k, v, torch.tensor(lengths, dtype=torch.int32)), kwargs)

    keys = sum(lengths)
    work = Work(flops=2 * heads * keys * (dim + value_dim), bytes=4 * kv_heads * keys * (dim + value_dim))
    return Case(name, make, paged_row if page else first_rows, batch=batch, work=work, **flags)


CASES = [
    case("contiguous", (4, 2), 16, (5, 70, 1), room=80, small=True),
    case("paged", (4, 4), 64, (5, 70, 129), page=16, small=True),
    case("odd_pages", (6, 2), 40, (33, 1, 200), page=7, value_dim=24),
    case("window", (2, 1), 32, (10, 150, 64), window=40, small=True),
    case("paged_window_softcap", (3, 3), 72, (10, 150, 65), page=32, window=40, softcap=2.0, scale=0.3),
    case("empty_sequence", (2, 2), 8, (0, 3)),
    case("big_group", (100, 1), 80, (65,)),
    case("empty_batch", (2, 2), 8, ()),
    case("gpt", (12, 12), 64, (1024,) * 8, bench=True),
    case("llama_paged", (32, 8), 128, (900, 17, 2048, 333), page=16, bench=True, bench_only=True),
]

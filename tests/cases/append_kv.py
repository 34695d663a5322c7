import torch

from tests.cases import Call, Case, Work, rand

SCALES = ("k_scale", "v_scale")


def row(call, i):
    return Call(tuple(t[i : i + 1] for t in call.args), call.kwargs)


def case(name, new, lengths, room, *, value_dim=None, page=None, rotated=False, kept=None, **options):
    """new (Hkv, S, D) for each of the sequences; `kept`: a quantised cache's dtype."""
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only", "without") if k in options}
    heads, rows, dim = new
    value_dim, batch = value_dim or dim, len(lengths)

    def make(g):
        kwargs = dict(options)
        pages, size = batch, room
        if page:
            each = -(-room // page)
            pages, size = batch * each + 2, page
            order = torch.randperm(pages, generator=g)[: batch * each]
            kwargs["block_table"] = order.to(torch.int32).view(batch, each)
        if rotated:
            angle = torch.arange(room).double()[:, None] * 10 ** -torch.linspace(0, 3, dim // 2).double()
            kwargs |= {"cos": angle.cos(), "sin": angle.sin()}
        k, v = rand(g, batch, heads, rows, dim), rand(g, batch, heads, rows, value_dim)
        caches = rand(g, pages, heads, size, dim), rand(g, pages, heads, size, value_dim)
        if kept:
            caches = tuple(t.to(kept) for t in caches)
            kwargs |= {name: rand(g, pages, heads, size) for name in SCALES}
        return Call((k, v, *caches, torch.tensor(lengths, dtype=torch.int32)), kwargs)

    n = batch * heads * rows * (dim + value_dim)
    work = Work(flops=3 * n if rotated else 0, bytes=8 * n)
    return Case(name, make, None if page else row, batch=batch, work=work, statistics=SCALES, **flags)


CASES = [
    case("one_token", (2, 1, 16), (0, 5, 9), 10, small=True),
    case("prefill_rotated", (3, 9, 40), (0, 4), 20, rotated=True, value_dim=24, small=True),
    case("rotated_interleaved", (2, 3, 72), (1, 0), 20, rotated=True, interleaved=True),
    case("paged", (2, 11, 16), (3, 17, 0), 40, page=8, rotated=True, small=True),
    case("nothing_new", (2, 0, 16), (3, 10), 10),
    case("empty_batch", (2, 1, 8), (), 4),
    case("gpt_step", (12, 1, 64), (700,) * 8, 1024, rotated=True, bench=True),
    case(
        "step_float8",
        (8, 1, 128),
        (700,) * 4,
        1024,
        rotated=True,
        kept=torch.float8_e4m3fn,
        bench_only=True,
        without=("cpu",),
    ),
]

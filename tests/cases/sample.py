import torch

from tests.cases import Call, Case, Work, first_rows, rand


def case(name, shape, *, scale=3.0, ties=False, rows=None, **options):
    """`rows`: parameters given per row. The seed of these logits keeps every draw clear of the borders between
    tokens, where float32 weights and the float64 reference may disagree."""
    flags = {k: options.pop(k) for k in ("small", "bench", "bench_only") if k in options}

    def make(g):
        logits = rand(g, *shape, scale=scale)
        if ties:
            logits = logits.round()
        seeds = torch.randint(-(2**63), 2**63 - 1, (shape[0],), generator=g)
        given = {k: torch.tensor(v) for k, v in (rows or {}).items()}
        return Call((logits, seeds), options | given)

    n = shape[0] * shape[1]
    return Case(name, make, first_rows, batch=shape[0], work=Work(flops=12 * n, bytes=4 * n), **flags)


CASES = [
    case("plain", (3, 257), small=True),
    case("greedy", (4, 1000), temperature=0.0, ties=True, small=True),
    case("top_k", (4, 100), top_k=5, temperature=0.7, small=True, position=3),
    case("top_k_ties", (6, 64), top_k=9, ties=True, scale=1.0, small=True),
    case("top_p", (4, 500), top_p=0.8, small=True),
    case("top_p_long", (2, 40000), top_p=0.9),
    case("top_p_long_ties", (1, 33000), top_p=0.6, ties=True),
    case("top_k_long", (2, 40000), top_k=300, top_p=0.9),
    case("top_k_nearly_all", (1, 5000), top_k=4990),
    case("min_p_long", (2, 9000), min_p=0.1),
    case("top_p_ties", (6, 64), top_p=0.5, ties=True, scale=1.0),
    case("min_p", (4, 300), min_p=0.05, temperature=1.5, small=True),
    case("all_filters", (5, 333), temperature=0.9, top_k=40, top_p=0.9, min_p=0.02, position=2**40, small=True),
    case(
        "per_row", (4, 200), small=True, min_p=0.01,
        rows={
            "temperature": [0.0, 0.5, 1.0, 2.0], "top_k": [0, 3, 500, 7], "top_p": [1.0, 0.0, 0.75, 0.5],
            "position": [0, 5, 2**33, 7],
        },
    ),
    case("one_token", (2, 1), top_p=0.3),
    case("empty_batch", (0, 10)),
    case("vocabulary", (2, 50257), top_p=0.9, temperature=0.8, bench=True),
    case("large_vocabulary_top_p", (1, 151936), top_p=0.9, temperature=0.8, bench=True),
    case("large_vocabulary_top_k", (1, 151936), top_k=50, bench=True),
    case("large_vocabulary_greedy", (1, 151936), temperature=0.0, bench=True, bench_only=True),
    case("batch_of_large_vocabularies", (16, 151936), top_p=0.9, temperature=0.8, bench=True, bench_only=True),
]  # fmt: skip

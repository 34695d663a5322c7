"""sample beyond the promises: exact frequencies, the kept set of Hugging Face's warpers, its errors."""

import math

import pytest
import torch
from scipy import stats

import hexad_kernels
from hexad_kernels import sample
from hexad_kernels.sample import _uniform, kept_tokens

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
FILTERS = [
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.8},
    {"top_p": 0.995},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 30, "top_p": 0.9},
    {"temperature": 0.8, "top_k": 25, "top_p": 0.85, "min_p": 0.08},
    {"top_p": 0.7, "min_p": 0.2},
]


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept(logits, **options):
    columns = [torch.full((len(logits), 1), v) for v in (OFF | options).values()]
    return kept_tokens(logits, *columns)


def draws(row, n, seed=11, **options):
    """n draws of one distribution: the same seed at n positions."""
    return sample(row.expand(n, -1), torch.full((n,), seed), position=torch.arange(n), **options)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_frequencies_are_the_probabilities(options):
    row = 1.5 * normal(3, 1, 40)
    n = 40_000
    keep, w = kept(row, **options)
    p = torch.where(keep, w, 0)[0]
    counts = torch.bincount(draws(row, n, **options), minlength=40).double()
    assert (counts[~keep[0]] == 0).all()
    live = p > 0
    expected = n * p[live] / p.sum()
    large = expected > 5
    observed = torch.cat([counts[live][large], counts[live][~large].sum()[None]])
    expected = torch.cat([expected[large], expected[~large].sum()[None]])
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    if len(expected) > 1:
        assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_kept_tokens_are_those_of_hugging_faces_warpers(options):
    process = pytest.importorskip("transformers.generation.logits_process")
    warpers = {
        "temperature": process.TemperatureLogitsWarper,
        "top_k": process.TopKLogitsWarper,
        "top_p": process.TopPLogitsWarper,
        "min_p": process.MinPLogitsWarper,
    }
    logits = 3 * normal(5, 64, 200).double()
    scores = logits
    for name, value in options.items():
        scores = warpers[name](value)(None, scores)
    assert torch.equal(kept(logits, **options)[0], scores > -math.inf)


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("size", [40, 1000, 5000])
def test_kernel_draws_what_the_reference_draws(options, size):
    row = 2 * normal(size, 1, size)
    tokens = draws(row, 300, **options)
    with hexad_kernels.backend("reference"):
        assert torch.equal(draws(row, 300, **options), tokens)


@pytest.mark.parametrize(
    ("row", "options", "want"),
    [
        ([0.0, 1.0, -1.0, -0.0, 0.0, 0.0], {"top_k": 3}, [0, 1, 3]),
        ([0.0, 2.0, -9.0, -9.0, 0.0, -9.0], {"top_p": 0.75}, [1]),
        ([0.0, 2.0, -9.0, -9.0, 0.0, -9.0], {"top_p": 0.8}, [0, 1]),
        ([0.0, 2.0, -9.0, 2.0, 0.0, -9.0], {"min_p": 1.0}, [1, 3]),
    ],
    ids=str,
)
def test_ties_are_cut_at_the_lower_index(row, options, want):
    row = torch.tensor([row])
    keep, _ = kept(row, **options)
    assert keep[0].nonzero()[:, 0].tolist() == want
    assert set(draws(row, 500, **options).tolist()) == set(want)


def test_equal_logits_keep_exactly_as_many_as_top_p_needs():
    row = torch.zeros(1, 8)
    assert set(draws(row, 500, top_p=0.5).tolist()) == {0, 1, 2, 3}
    assert set(draws(row, 500, top_p=0.0).tolist()) == {0}


def test_greedy_is_argmax_and_needs_no_seed():
    logits = normal(0, 64, 4097).round()
    assert torch.equal(sample(logits, temperature=0), logits.argmax(1))
    best = (logits == logits.amax(1, keepdim=True)).int().argmax(1)
    assert torch.equal(sample(logits, temperature=0.0), best)
    assert torch.equal(sample(logits, torch.arange(64), temperature=1e-6, top_k=1), best)


def test_a_row_does_not_depend_on_the_batch():
    logits, seeds = 2 * normal(1, 9, 3000), torch.arange(9) * 77
    k = torch.tensor([0, 5, 50, 3000, 1, 2, 7, 0, 0])
    p = torch.linspace(0.1, 1, 9)
    whole = sample(logits, seeds, position=5, top_k=k, top_p=p)
    for i in range(9):
        alone = sample(logits[i : i + 1], seeds[i : i + 1], position=5, top_k=int(k[i]), top_p=float(p[i]))
        assert alone == whole[i]


def test_seeds_and_positions_change_the_draw():
    row = torch.zeros(1, 2**20)
    seeds = torch.tensor([0, 1, 2**32, -1])
    tokens = [sample(row.expand(4, -1), seeds, position=p) for p in (0, 1, 2**32)]
    assert len(set(torch.cat(tokens).tolist())) == 12
    assert sample(row, [2**64 - 1], position=0) == tokens[0][3]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_infinite_logits(backend):
    inf = math.inf
    logits = torch.tensor([[0.0, inf, 5.0, -inf], [-inf, -inf, 0.0, -inf], [inf, 0.0, 0.0, inf]])
    with hexad_kernels.backend(backend):
        for position in range(50):
            tokens = sample(logits, [1, 2, 3], position=position, top_k=3)
            assert tokens[0] == 1 and tokens[1] == 2 and tokens[2] in (0, 3)
        assert sample(logits, temperature=0).tolist() == [1, 2, 0]


def test_a_vocabulary_of_150_thousand():
    row = 4 * normal(9, 1, 151_936)
    for options in ({}, {"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.01, "temperature": 0.7}):
        keep, _ = kept(row, **options)
        tokens = draws(row, 12, **options)
        assert keep[0, tokens].all()
        with hexad_kernels.backend("reference"):
            assert torch.equal(draws(row, 12, **options), tokens)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"min_p": 0.3}, {"top_k": 15_000, "top_p": 0.6}], ids=str)
@pytest.mark.parametrize("spread", [0.1, 4.0])
@pytest.mark.parametrize("temperature", [1e-36, 1e-31, 0.3, 7.0, 1e31, 1e37])
def test_long_rows_at_any_temperature(temperature, spread, options):
    """Each token lies where the reference's running sum passes u, but for rounding: flat rows have many borders."""
    row = (spread * normal(4, 1, 20_001).double() * temperature).float()
    temperature = float(torch.tensor(temperature, dtype=torch.float32))
    keep, w = kept(row, temperature=temperature, **options)
    running = torch.where(keep, w, 0.0).cumsum(1)[0]
    tokens = draws(row, 40, temperature=temperature, **options)
    u = _uniform(torch.full((40,), 11), torch.arange(40)) * running[-1]
    assert (running[tokens] > u - 1e-6 * running[-1]).all()
    before = torch.where(tokens > 0, running[tokens - 1], 0.0)
    assert (before < u + 1e-6 * running[-1]).all()


def test_bfloat16_logits_are_their_float32_values():
    logits = (3 * normal(2, 5, 777)).bfloat16()
    for options in FILTERS:
        assert torch.equal(sample(logits, range(5), **options), sample(logits.float(), range(5), **options))


def test_float64_parameters_are_rounded():
    logits = normal(2, 4, 99)
    p = torch.full((4,), 0.8, dtype=torch.float64)
    assert torch.equal(sample(logits, range(4), top_p=p), sample(logits, range(4), top_p=0.8))


def test_logits_that_require_grad():
    logits = normal(2, 4, 99).requires_grad_()
    tokens = sample(logits, range(4))
    assert not tokens.requires_grad
    assert torch.equal(tokens, sample(logits.detach(), range(4)))


def test_compiles_without_graph_breaks():
    logits, seeds = normal(0, 3, 50), torch.arange(3)
    compiled = torch.compile(
        lambda *a: sample(*a, position=4, top_k=9, top_p=0.9) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(logits, seeds), sample(logits, seeds, position=4, top_k=9, top_p=0.9) + 1)


def rows_with(value, row, size=100):
    logits = torch.zeros(3, size)
    logits[row] = value
    return logits


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"logits": [1.0]}, TypeError, "logits: got list, wants a torch.Tensor"),
        ({"logits": torch.zeros(3)}, ValueError, "logits: got 1 dimensions (3,), wants 2"),
        ({"logits": torch.zeros(3, 0)}, ValueError, "logits: got shape (3, 0), wants at least one token"),
        ({"logits": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "logits: got int64"),
        ({"logits": rows_with(math.nan, (1, 99))}, ValueError, "logits: row 1 has NaN"),
        ({"logits": rows_with(math.nan, (2, 0)), "temperature": 0}, ValueError, "logits: row 2 has NaN"),
        ({"logits": rows_with(math.nan, 0)}, ValueError, "logits: row 0 has NaN"),
        ({"logits": rows_with(-math.inf, 2)}, ValueError, "logits: row 2 is -inf everywhere"),
        ({"seeds": None}, ValueError, "seeds: missing, wants int64 (3,) for temperature 1.0 (0 is greedy)"),
        ({"seeds": None, "temperature": torch.tensor([0.0, 0.5, 0.0])}, ValueError, "seeds: missing"),
        ({"seeds": torch.zeros(2, dtype=torch.int64)}, ValueError, "seeds: got shape (2,), wants (3)"),
        ({"seeds": torch.zeros(3)}, TypeError, "seeds: got float32, wants int64"),
        ({"seeds": 3}, TypeError, "seeds: got int"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1.0, wants a finite number of at least 0"),
        ({"temperature": math.nan}, ValueError, "temperature: got nan"),
        ({"temperature": math.inf}, ValueError, "temperature: got inf"),
        ({"temperature": torch.tensor([1.0, -1.0, 1.0])}, ValueError, "in row 1, wants a finite number"),
        ({"temperature": torch.zeros(3, dtype=torch.int64)}, TypeError, "temperature: got int64"),
        ({"top_k": -1}, ValueError, "top_k: got -1, wants at least 0"),
        ({"top_k": torch.tensor([1, 1, -2])}, ValueError, "-2 in row 2, wants at least 0"),
        ({"top_k": torch.ones(3)}, TypeError, "top_k: got float32, wants int64"),
        ({"top_p": 1.5}, ValueError, "top_p: got 1.5, wants 0 to 1"),
        ({"top_p": torch.tensor([0.5, 0.5, math.nan])}, ValueError, "nan in row 2, wants 0 to 1"),
        ({"min_p": -0.1}, ValueError, "min_p: got -0.1, wants 0 to 1"),
        ({"min_p": torch.zeros(1)}, ValueError, "min_p: got shape (1,), wants (3)"),
        ({"position": -1}, ValueError, "position: got -1, wants at least 0"),
        ({"position": torch.tensor([0, -5, 0])}, ValueError, "-5 in row 1, wants at least 0"),
        ({"position": torch.zeros(3)}, TypeError, "position: got float32, wants int64"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(backend, change, error, text):
    arguments = {"logits": torch.zeros(3, 100), "seeds": torch.arange(3)} | change
    with hexad_kernels.backend(backend), pytest.raises(error) as caught:
        sample(**arguments)
    assert text in str(caught.value)

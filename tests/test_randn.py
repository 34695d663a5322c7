"""randn beyond the promises: Philox's published vectors, the normal distribution, independent rows."""

import math

import pytest
import torch
from scipy import stats

import hexad_kernels
from hexad_kernels import randn
from hexad_kernels.randn import philox

# Random123's known answers for philox4x32 with 10 rounds: counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_philox_known_answers(counter, key, want):
    words = philox([torch.tensor([c]) for c in counter], [torch.tensor([k]) for k in key])
    assert [int(w) for w in words] == want


def test_the_kernels_words_are_the_published_ones():
    w = KNOWN[0][2]
    want = []
    for radius, angle in ((w[0], w[1]), (w[2], w[3])):
        r = math.sqrt(-2 * math.log((radius + 0.5) / 2**32))
        turn = 2 * math.pi * (angle + 0.5) / 2**32
        want += [r * math.cos(turn), r * math.sin(turn)]
    with hexad_kernels.backend("cpu"):
        got = randn([0], (4,))[0]
    assert torch.equal(got, torch.tensor(want, dtype=torch.float64).float())


@pytest.mark.parametrize("offset", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
def test_kernel_against_reference(offset):
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 12345678901234567890]
    got = randn(seeds, (5003,), offset=offset)
    with hexad_kernels.backend("reference"):
        want = randn(seeds, (5003,), offset=offset)
    assert (got != want).double().mean() < 1e-3
    assert torch.allclose(got, want, rtol=2**-23, atol=0)


def test_it_is_the_standard_normal():
    z = randn([7], (2**20,))[0].double()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(z[: 2**17].numpy(), "norm").pvalue > 1e-3
    # The tail: P(|z| > 4) = 6.33e-5.
    assert 35 < (z.abs() > 4).sum() < 105


def test_rows_offsets_and_neighbours_are_independent():
    n = 2**16
    rows = torch.cat([randn(range(6), (n,)), randn([0], (n,), offset=1), randn([0], (n,), offset=2**32)]).double()
    for what in (rows, rows**2 - 1):
        correlation = torch.corrcoef(what) - torch.eye(len(rows))
        assert correlation.abs().max() < 5 / math.sqrt(n)
    z = rows[0]
    for lag in (1, 2, 3, 4, 64):
        assert abs((z[lag:] * z[:-lag]).mean()) < 4.5 / math.sqrt(n)
        assert abs(((z[lag:] ** 2 - 1) * (z[:-lag] ** 2 - 1)).mean()) < 4.5 * 2 / math.sqrt(n)


def test_a_row_depends_on_its_seed_alone_and_starts_as_a_longer_one():
    alone = randn([41], (3, 5))
    among = randn(torch.tensor([7, 41, -3]), (3, 5))
    assert torch.equal(among[1:2], alone)
    assert torch.equal(randn([41], (1000,))[:, :15], alone.reshape(1, 15))
    assert not torch.equal(among[0], among[1])


def test_compiles_without_graph_breaks():
    compiled = torch.compile(lambda s: randn(s, (4, 5), offset=3) + 1, fullgraph=True, backend="aot_eager")
    seeds = torch.tensor([5, 6])
    assert torch.equal(compiled(seeds), randn(seeds, (4, 5), offset=3) + 1)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3, (4,)), TypeError, "seeds: got int, wants an int64 tensor (B,) or a sequence"),
        (("12", (4,)), TypeError, "seeds: got str"),
        (([1, 0.5], (4,)), TypeError, "seeds: got [1, 0.5], wants integers"),
        ((torch.zeros(2), (4,)), TypeError, "seeds: got float32, wants int64"),
        ((torch.zeros(2, dtype=torch.int32), (4,)), TypeError, "seeds: got int32, wants int64"),
        ((torch.zeros(2, 2, dtype=torch.int64), (4,)), ValueError, "seeds: got 2 dimensions"),
        (([1], (4, -1)), ValueError, "shape: got (4, -1)"),
    ],
)
def test_bad_input(arguments, error, text):
    with pytest.raises(error) as caught:
        randn(*arguments)
    assert text in str(caught.value)


def test_bad_offset():
    with pytest.raises(ValueError, match="offset: got -1"):
        randn([1], (2,), offset=-1)

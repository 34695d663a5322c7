"""vq beyond the promises: cdist's argmin, exact copies, ties, NaN, clear errors."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import native, vq


def inputs(*leading, d=24, entries=100, dtype=torch.float32):
    g = torch.Generator().manual_seed(4)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in ((*leading, d), (entries, d))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("d", "entries"), [(1, 40), (3, 17), (16, 256), (24, 100), (70, 15)])
def test_agrees_with_cdist(d, entries, dtype):
    x, codebook = inputs(5, 31, d=d, entries=entries, dtype=dtype)
    quantized, index = vq(x, codebook)
    distance = torch.cdist(x.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    chosen = distance.gather(-1, index[..., None])[..., 0]
    assert torch.equal(index, distance.argmin(-1)) or torch.equal(chosen, distance.amin(-1))
    assert torch.equal(quantized, codebook[index])
    assert index.dtype == torch.int64 and quantized.dtype == dtype and quantized.shape == x.shape


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_ties_go_to_the_lowest_index(name):
    _, codebook = inputs(1)
    twice = torch.cat([codebook, codebook, codebook])
    with hexad_kernels.backend(name):
        assert torch.equal(vq(codebook, twice)[1], torch.arange(100))
        assert torch.equal(vq(codebook[50:], twice.flip(0))[1], torch.arange(100).flip(0)[50:])


def test_near_ties_do_not_cancel():
    """Far from the origin |x|^2 - 2 x.c + |c|^2 loses the difference between entries; (x - c)^2 keeps it."""
    x, _ = inputs(1, d=8)
    codebook = x + 1000 + torch.arange(1, 9).flip(0)[:, None] / 64
    codebook[3] = x + 1000 + 2**-10
    assert vq(x + 1000, codebook)[1].item() == 3


def chosen_one_by_one(x, codebook):
    """The choice from every distance: rows in small calls, which have no way round them."""
    return torch.cat([vq(row, codebook)[1] for row in x.split(7)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["normal", "far", "lattice", "near", "twins", "tiny", "huge", "mixed"])
def test_many_rows_choose_as_every_distance_would(kind, dtype):
    g = torch.Generator().manual_seed(5)
    for rows, entries, d in ((67, 90, 1), (25, 1100, 3), (130, 257, 16), (61, 2500, 8), (30, 70, 200)):
        x, codebook = torch.randn(rows, d, generator=g), torch.randn(entries, d, generator=g)
        if kind == "far":
            x, codebook = x + 1000, codebook + 1000
        elif kind == "lattice":  # many exact ties
            x, codebook = (2 * x).round(), codebook.round()
        elif kind == "near":  # many candidates within rounding
            codebook = x[:1] + 1e-6 * codebook
        elif kind == "twins":
            codebook[entries // 2 :] = codebook[: entries - entries // 2].clone()
        elif kind == "tiny":
            x, codebook = x * 1e-20, codebook * 1e-20
        elif kind == "huge":
            x, codebook = x * 1e18, codebook * 1e18
        elif kind == "mixed":
            x[rows // 2] = 1e19
            codebook[entries // 3] *= 1e19
            codebook[entries // 2] = x[3]
        x, codebook = x.to(dtype), codebook.to(dtype)
        assert torch.equal(vq(x, codebook)[1], chosen_one_by_one(x, codebook)), (rows, entries, d)


def test_few_rows_share_the_codebook_among_threads():
    x, codebook = inputs(3, d=16, entries=9000)
    codebook[8000:] = codebook[:1000].clone()
    codebook[7000] = x[1]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(vq(x, codebook)[1])
            broken = codebook.clone()
            broken[[8500, 6000]] = float("nan")
            with pytest.raises(ValueError, match="row 0 to entry 6000 is NaN"):
                vq(x, broken)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert found[0][1] == 7000


def test_extremes():
    codebook = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    inf = torch.tensor([[float("inf"), 0.0], [3.0, 3.0]])
    assert vq(inf, codebook)[1].tolist() == [0, 1]
    assert vq(torch.tensor([[3e38, 3e38]]), -codebook * 1e38)[1].tolist() == [0]


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_nan_is_an_error(name):
    x, codebook = inputs(4, 5)
    x[2, 3, 7] = x[3, 1, 0] = float("nan")
    with hexad_kernels.backend(name):
        with pytest.raises(ValueError, match="the distance from row 13 to entry 0 is NaN"):
            vq(x, codebook)
        x = x.nan_to_num()
        codebook[70, 3] = float("nan")
        with pytest.raises(ValueError, match="the distance from row 0 to entry 70 is NaN"):
            vq(x, codebook)


def test_views_and_empties():
    x, codebook = inputs(4, 5)
    quantized, index = vq(x, codebook)
    turned = vq(x.transpose(0, 1), codebook.t().contiguous().t())
    assert torch.equal(turned[0], quantized.transpose(0, 1)) and torch.equal(turned[1], index.t())
    assert torch.equal(vq(x[1, 2], codebook)[1], index[1, 2])
    for name in ("cpu", "reference"):
        with hexad_kernels.backend(name):
            assert [tuple(t.shape) for t in vq(x[:0], codebook)] == [(0, 5, 24), (0, 5)]
            assert torch.equal(vq(x[..., :0], codebook[:, :0])[1], torch.zeros(4, 5, dtype=torch.int64))


def test_compiles_without_graph_breaks():
    x, codebook = inputs(4, 5)
    compiled = torch.compile(lambda x: vq(x, codebook)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), vq(x, codebook)[0] + 1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": None}, TypeError, "x: got NoneType, wants a torch.Tensor"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: got a scalar, wants (..., features)"),
        ({"x": torch.zeros(3, 24, dtype=torch.int64)}, TypeError, "x: got int64"),
        ({"x": torch.zeros(3, 23)}, ValueError, "codebook: got shape (100, 24), wants (at least 1, 23)"),
        ({"codebook": torch.zeros(0, 24)}, ValueError, "codebook: got shape (0, 24), wants (at least 1, 24)"),
        ({"codebook": torch.zeros(24)}, ValueError, "codebook: got 1 dimensions (24,), wants 2"),
        ({"codebook": torch.zeros(5, 24).bfloat16()}, TypeError, "codebook: got bfloat16, wants x's float32"),
        ({"codebook": torch.zeros(5, 24, device="meta")}, ValueError, "codebook: is on meta, wants x's device cpu"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    x, codebook = inputs(3)
    with pytest.raises(error) as caught:
        vq(**({"x": x, "codebook": codebook} | change))
    assert text in str(caught.value)


def test_the_door_guards_memory():
    x, codebook = inputs(30)
    quantized, index = torch.empty(30, 24), torch.empty(30, dtype=torch.int64)
    space = torch.empty(torch.get_num_threads() * 1030 * 24)
    native.C.vq(x, codebook, quantized, index, space)
    for bad in ((x, codebook[:, :23], quantized, index, space), (x, codebook[:0], quantized, index, space),
                (x, codebook, quantized[:2], index, space), (x, codebook, quantized, index[:2], space),
                (x, codebook, quantized, index.int(), space), (x, codebook, quantized, index, space[:-1]),
                (x, codebook, quantized, index, space.double())):  # fmt: skip
        with pytest.raises(ValueError):
            native.C.vq(*bad)

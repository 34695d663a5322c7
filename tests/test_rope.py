"""rope beyond the promises: the plain formula, its two layouts, relative positions; errors."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import rope


def tables(dim, room=64, dtype=torch.float64):
    angle = torch.arange(room, dtype=torch.float64)[:, None] * 10000 ** (-torch.arange(0, dim, 2) / dim)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_turn_as_complex_numbers(interleaved):
    x = draw(2, 3, 5, 10)
    cos, sin = tables(10)
    starts = torch.tensor([0, 7], dtype=torch.int32)
    y = rope(x.float(), cos.float(), sin.float(), positions=starts, interleaved=interleaved)
    pairs = (lambda t: t.unflatten(-1, (5, 2))) if interleaved else (lambda t: t.unflatten(-1, (2, 5)).mT)
    turn = torch.complex(cos, sin)[torch.arange(5) + starts[:, None]][:, None]
    want = torch.view_as_complex(pairs(x).contiguous()) * turn
    assert torch.allclose(torch.view_as_complex(pairs(y.double()).contiguous()), want, atol=1e-6)


def test_the_layouts_are_permutations_of_each_other():
    x = draw(2, 3, 5, 72, dtype=torch.float32)
    cos, sin = tables(72, dtype=torch.float32)
    halves = rope(x, cos, sin)
    woven = rope(x.unflatten(-1, (2, 36)).mT.flatten(-2), cos, sin, interleaved=True)
    assert torch.equal(woven.unflatten(-1, (36, 2)).mT.flatten(-2), halves)


def test_products_depend_on_the_distance_only():
    q, k = draw(1, 1, 1, 16), draw(1, 1, 2, 16)[:, :, 1:]
    cos, sin = tables(16)

    def product(i, j):
        at = [torch.tensor([p], dtype=torch.int32) for p in (i, j)]
        return (rope(q, cos, sin, positions=at[0]) * rope(k, cos, sin, positions=at[1])).sum()

    with hexad_kernels.backend("reference"):
        assert torch.allclose(product(9, 4), product(25, 20))
        assert not torch.allclose(product(9, 4), product(9, 5))


def test_positions_continue_a_sequence():
    x = draw(1, 2, 9, 32, dtype=torch.float32)
    cos, sin = tables(32, dtype=torch.float32)
    later = rope(x[:, :, 4:], cos, sin, positions=torch.tensor([4], dtype=torch.int32))
    assert torch.equal(later, rope(x, cos, sin)[:, :, 4:])


@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.float32), (40, torch.float32), (64, torch.bfloat16)], ids=str)
def test_outputs_beyond_the_cache_have_the_bits_of_their_rows(dim, dtype):
    x = draw(2, 8200, 7 * 64 // dim, dim).to(dtype).repeat(1, 1, 2 if dtype == torch.bfloat16 else 1, 1).transpose(1, 2)
    cos, sin = tables(dim, 8200, dtype)
    y = rope(x, cos, sin)
    for i in range(2):
        assert torch.equal(rope(x[i : i + 1], cos, sin), y[i : i + 1])


def test_gradients():
    x = draw(2, 1, 3, 6).requires_grad_()
    cos, sin = tables(6)
    for interleaved in (False, True):
        assert torch.autograd.gradcheck(lambda t: rope(t, cos, sin, interleaved=interleaved), x)  # noqa: B023


def test_compiles_without_graph_breaks():
    x, (cos, sin) = draw(2, 3, 5, 10, dtype=torch.float32), tables(10, dtype=torch.float32)
    compiled = torch.compile(lambda *t: rope(*t) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, cos, sin), rope(x, cos, sin) + 1)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": torch.zeros(2, 5, 10)}, ValueError, "x: got 3 dimensions"),
        ({"x": torch.zeros(2, 3, 5, 9)}, ValueError, "x: got head dimension 9, wants an even one"),
        ({"x": torch.zeros(2, 3, 65, 10)}, ValueError, "cos: has 64 positions, wants at least x's 65 rows"),
        ({"cos": torch.zeros(64, 10)}, ValueError, "cos: got shape (64, 10), wants (any, 5)"),
        ({"sin": torch.zeros(63, 5)}, ValueError, "sin: got (63, 5)"),
        ({"sin": torch.zeros(64, 5).bfloat16()}, TypeError, "sin: got bfloat16"),
        ({"positions": int32(0)}, ValueError, "positions: got shape (1,), wants (2) = (B,)"),
        ({"positions": torch.tensor([0, 1])}, TypeError, "positions: got int64"),
        ({"positions": int32(0, 60)}, ValueError, "positions: row 1 starts at 60, wants 0 to 59"),
        ({"positions": int32(-2, 1)}, ValueError, "positions: row 0 starts at -2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(name, change, error, text):
    cos, sin = tables(10, dtype=torch.float32)
    arguments = {"x": draw(2, 3, 5, 10, dtype=torch.float32), "cos": cos, "sin": sin} | change
    with hexad_kernels.backend(name), pytest.raises(error) as caught:
        rope(**arguments)
    assert text in str(caught.value)

"""merge_attention beyond the promises: parts merge to the whole, empty parts are ignored; errors."""

import math
from itertools import pairwise

import pytest
import torch

from hexad_kernels import attention, merge_attention


def parts(dtype, cuts=(0, 30, 31, 100)):
    g = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 3, n, 40, generator=g).to(dtype) for n in (20, 100, 100))
    pieces = [attention(q, k[:, :, a:b], v[:, :, a:b], return_lse=True) for a, b in pairwise(cuts)]
    return attention(q, k, v, return_lse=True), pieces


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)], ids=str)
def test_parts_merge_to_the_whole(dtype, tolerance):
    (out, lse), (a, b, c) = parts(dtype)
    for merged, merged_lse in (
        merge_attention(*merge_attention(*a, *b), *c),
        merge_attention(*a, *merge_attention(*b, *c)),
    ):
        assert merged.dtype == dtype and torch.allclose(merged, out, rtol=tolerance, atol=tolerance)
        assert torch.allclose(merged_lse, lse, rtol=1e-6, atol=1e-6)


def test_a_side_that_saw_nothing_is_not_read():
    _, (a, _, _) = parts(torch.float32)
    nothing = torch.full_like(a[0], math.nan), torch.full_like(a[1], -math.inf)
    for merged in (merge_attention(*a, *nothing), merge_attention(*nothing, *a)):
        assert torch.equal(merged[0], a[0])
        assert torch.allclose(merged[1], a[1], rtol=1e-6, atol=0)
    out, lse = merge_attention(*nothing, *nothing)
    assert (out == 0).all() and (lse == -math.inf).all()


def test_compiles_without_graph_breaks():
    _, (a, b, _) = parts(torch.float32)
    compiled = torch.compile(lambda *t: merge_attention(*t)[0] + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*a, *b), merge_attention(*a, *b)[0] + 1)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({0: 1.0}, TypeError, "out_a: got float, wants a torch.Tensor"),
        ({0: torch.tensor(1.0)}, ValueError, "out_a: got 0 dimensions"),
        ({1: torch.zeros(2, 3)}, ValueError, "lse_a: got shape (2, 3), wants (2, 3, 20)"),
        ({2: torch.zeros(2, 3, 20, 41)}, ValueError, "out_b: got shape (2, 3, 20, 41)"),
        ({2: torch.zeros(2, 3, 20, 40).bfloat16()}, TypeError, "out_b: got bfloat16"),
        ({3: torch.zeros(2, 3, 20).bfloat16()}, TypeError, "lse_b: got bfloat16, wants float32"),
        ({3: torch.zeros(2, 3, 20, device="meta")}, ValueError, "lse_b: is on meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(change, error, text):
    _, (a, b, _) = parts(torch.float32)
    arguments = dict(enumerate((*a, *b))) | change
    with pytest.raises(error) as caught:
        merge_attention(*arguments.values())
    assert text in str(caught.value)

"""attention_varlen beyond the promises: each sequence has the bits of attention on it alone; errors."""

import pytest
import torch

import hexad_kernels
from hexad_kernels import attention, attention_varlen

LENGTHS_Q, LENGTHS_K = (5, 0, 70, 33), (5, 3, 90, 7)


def starts(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def inputs(dtype=torch.float32, lengths_q=LENGTHS_Q, lengths_k=LENGTHS_K):
    g = torch.Generator().manual_seed(4)
    shapes = (sum(lengths_q), 6, 24), (sum(lengths_k), 2, 24), (sum(lengths_k), 2, 40)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"causal": "upper_left", "window": 9},
        {"window": (3, 4), "softcap": 2.0},
        {"causal": True, "alibi_slopes": torch.arange(6) / 8, "sinks": torch.arange(6) / 2},
    ],
    ids=lambda options: "_".join(options),
)
def test_each_sequence_alone(options, dtype):
    q, k, v = inputs(dtype)
    at_q, at_k = starts(LENGTHS_Q), starts(LENGTHS_K)
    out, lse = attention_varlen(q, k, v, at_q, at_k, return_lse=True, **options)
    for n in range(len(LENGTHS_Q)):
        rows, keys = slice(at_q[n], at_q[n + 1]), slice(at_k[n], at_k[n + 1])
        one = (t.transpose(0, 1)[None] for t in (q[rows], k[keys], v[keys]))
        want, want_lse = attention(*one, return_lse=True, **options)
        assert torch.equal(out[rows], want[0].transpose(0, 1))
        assert torch.equal(lse[:, rows], want_lse[0])


def test_gradients():
    lengths = (2, 0, 3), (3, 1, 2)
    q, k, v = inputs(torch.float64, *lengths)
    leaves = [t.clone().requires_grad_() for t in (q[..., :5], k[..., :5], v[..., :7])]
    at = [starts(n) for n in lengths]
    assert torch.autograd.gradcheck(lambda *t: attention_varlen(*t, *at, causal="upper_left"), leaves)


def test_compiles_without_graph_breaks():
    arguments = (*inputs(), starts(LENGTHS_Q), starts(LENGTHS_K))
    compiled = torch.compile(lambda *t: attention_varlen(*t) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), attention_varlen(*arguments) + 1)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"cu_seqlens_q": int32(1, 5, 75, 108, 108)}, ValueError, "cu_seqlens_q: starts with 1, wants 0"),
        ({"cu_seqlens_q": int32(0, 80, 75, 108, 108)}, ValueError, "cu_seqlens_q: falls from 80 to 75 at 2"),
        ({"cu_seqlens_k": int32(0, 5, 8, 98, 104)}, ValueError, "cu_seqlens_k: ends with 104, wants the 105 tokens"),
        ({"cu_seqlens_k": int32(0, 105)}, ValueError, "cu_seqlens_k: got shape (2,), wants (5) = cu_seqlens_q's"),
        ({"cu_seqlens_q": int32()}, ValueError, "cu_seqlens_q: is empty"),
        ({"cu_seqlens_q": torch.zeros(5)}, TypeError, "cu_seqlens_q: got float32, wants int32"),
        ({"q": torch.zeros(1, 108, 6, 24)}, ValueError, "q: got 4 dimensions"),
        ({"q": torch.zeros(108, 5, 24)}, ValueError, "k: has 2 heads"),
        ({"k": torch.zeros(105, 2, 25)}, ValueError, "k: got shape"),
        ({"v": torch.zeros(104, 2, 24)}, ValueError, "v: got shape"),
        ({"v": torch.zeros(105, 2, 24).double()}, TypeError, "v: got float64"),
        ({"causal": None}, ValueError, "causal: got None"),
        ({"window": (0,)}, ValueError, "window: got (0,)"),
        ({"softcap": 0}, ValueError, "softcap: got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(name, change, error, text):
    q, k, v = inputs()
    arguments = {"q": q, "k": k, "v": v, "cu_seqlens_q": starts(LENGTHS_Q), "cu_seqlens_k": starts(LENGTHS_K)} | change
    with hexad_kernels.backend(name), pytest.raises(error) as caught:
        attention_varlen(**arguments)
    assert text in str(caught.value)

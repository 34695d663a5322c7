"""What a GPU's decoding step adds to the promises: half precision, quantised caches, the bits of one row and of many,
and what sample says where it can't raise."""

import math

import pytest
import torch

import hexad_kernels
from hexad_kernels import append_kv, linear, quantize, rope, sample
from hexad_kernels.append_kv import quantise
from hexad_kernels.decode import LARGEST
from hexad_kernels.op import BackendError

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def forced(backend_name):
    if not backend_name.startswith("cuda"):
        pytest.skip("tests of CUDA kernels")
    with hexad_kernels.backend(backend_name):
        yield


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tables(room, dim):
    angle = torch.arange(room)[:, None] * 100 ** (-torch.arange(0, dim, 2) / dim)
    return {"cos": angle.cos(), "sin": angle.sin()}


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@HALVES
@pytest.mark.parametrize("dim", [32, 10])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_rounds_once(dtype, dim, interleaved):
    x, options = draw(2, 3, 5, dim, dtype=dtype), {"positions": int32(4, 0), "interleaved": interleaved}
    got = rope(x, **tables(9, dim), **options)
    with hexad_kernels.backend("reference"):
        want = rope(x.double(), **{k: t.double() for k, t in tables(9, dim).items()}, **options)
    assert ((got.double() - want).abs() <= torch.finfo(dtype).eps * (want.abs() + 1e-3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kept", LARGEST, ids=str)
@pytest.mark.parametrize("interleaved", [None, False, True])
def test_a_quantised_cache_holds_the_rounded_rows_and_their_scales(dtype, kept, interleaved):
    k, v = draw(2, 2, 3, 24, dtype=dtype), draw(2, 2, 3, 40, dtype=dtype, seed=1)
    v[0, 1, 1] = torch.logspace(-7, 0, 40) * (-1) ** torch.arange(40)  # what float8 has no leading bit for, too
    v[0, 0, 0], v[1, 0, 1, 7], v[1, 1, 2, 39] = 0, math.nan, math.inf
    caches = [torch.full((2, 2, 9, d), 96, dtype=kept) for d in (24, 40)]
    scales = [torch.full((2, 2, 9), 9.0) for _ in range(2)]
    options = {} if interleaved is None else {**tables(9, 24), "interleaved": interleaved}
    starts = int32(5, 0)
    append_kv(k, v, *caches, starts, k_scale=scales[0], v_scale=scales[1], **options)
    if interleaved is not None:
        k = rope(k.float(), **tables(9, 24), positions=starts, interleaved=interleaved)
    for x, cache, scale in zip((k.float(), v.float()), caches, scales):
        near, want = quantise(x, kept)
        for b, at in enumerate(starts.tolist()):
            assert torch.equal(cache[b, :, at : at + 3].view(torch.uint8), near[b].view(torch.uint8))
            assert torch.equal(scale[b, :, at : at + 3].nan_to_num(-1), want[b].nan_to_num(-1))
            cache[b, :, at : at + 3], scale[b, :, at : at + 3] = 96, 9
        assert (cache.float() == 96).all() and (scale == 9).all()


@HALVES
@pytest.mark.parametrize("activation", [None, "gelu_gate"])
def test_linear_has_one_set_of_bits_for_any_number_of_rows(dtype, activation):
    x, weight, bias = draw(16, 300, dtype=dtype), draw(42, 300, dtype=dtype, seed=1) / 16, draw(42, dtype=dtype, seed=2)
    whole = linear(x, weight, bias, activation=activation)
    for rows in (slice(0, 1), slice(3, 11), slice(15, 16)):
        assert torch.equal(linear(x[rows], weight, bias, activation=activation), whole[rows])
    with hexad_kernels.backend("reference"):
        want = linear(x.double(), weight.double(), bias.double(), activation=activation)
    assert (whole.double() - want).abs().max() < torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_quantised_linear_has_one_set_of_bits_for_any_number_of_rows(dtype, form):
    x, weight = draw(6, 300, dtype=dtype), quantize(draw(40, 300, seed=1), form)
    x[4, 299], x[5, 0] = math.nan, math.inf
    whole = linear(x, weight)
    assert whole[4:].isnan().all() and whole[:4].isfinite().all()
    for row in (0, 3):
        assert torch.equal(linear(x[row : row + 1], weight), whole[row : row + 1])


def test_more_rows_than_a_kernel_takes_are_refused():
    x = draw(17, 8)
    with pytest.raises(BackendError, match="17 rows"):
        linear(x, draw(4, 8))
    with pytest.raises(BackendError, match="17 rows"):
        linear(x, quantize(draw(4, 8), "int8"))


def test_a_row_without_a_token_gets_a_status_and_the_others_theirs():
    logits = draw(6, 700)
    logits[1, 699], logits[2], logits[3, 5] = math.nan, -math.inf, math.inf
    p = torch.tensor([0.9, 0.9, 0.9, 0.9, 1.5, 0.9])
    tokens = sample(logits, range(6), top_p=p)
    assert tokens[1:5].tolist() == [-1, -2, 5, -3]
    good = sample(logits[[0, 5]], [0, 5], top_p=0.9)
    assert torch.equal(tokens[[0, 5]], good) and (good >= 0).all()
    with pytest.raises(BackendError, match="without seeds"):
        sample(logits, temperature=torch.zeros(6))


FILTERS = [
    {},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 0.8, "top_k": 25, "top_p": 0.9, "min_p": 0.02},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_draws_are_the_references(dtype, options):
    row = (2 * draw(1, 3001)).to(dtype)[:, 1:]  # no multiple of 16 bytes
    arguments = row.expand(40, -1), torch.full((40,), 11)
    tokens = sample(*arguments, position=torch.arange(40), **options)
    with hexad_kernels.backend("reference"):
        assert torch.equal(sample(*arguments, position=torch.arange(40), **options), tokens)


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_ties_are_cut_at_the_lower_index(value):
    row = torch.full((50, 3000), value)
    seeds = torch.arange(50)
    assert (sample(row, seeds, top_k=70) < 70).all()
    tokens = sample(row, seeds, top_p=0.01)
    assert (tokens < 30).all() and (tokens > 20).any()
    assert (sample(row, temperature=0) == 0).all()

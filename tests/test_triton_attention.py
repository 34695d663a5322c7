"""The attention family's Triton kernels beyond the promises: what moves a row between tiles changes none of its bits;
what only they and the CPU's kernels serve; hidden pairs of a gradient; reads stay within inputs."""

import math
import subprocess
import sys

import pytest
import torch

import hexad_kernels
from hexad_kernels import attention, attention_backward, attention_varlen, decode
from tests import promises

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.fixture(autouse=True)
def forced(backend_name):
    if not backend_name.startswith("triton"):
        pytest.skip("Triton's kernels only")
    with hexad_kernels.backend(backend_name):
        yield


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@DTYPES
def test_a_row_has_the_same_bits_in_any_tile(dtype):
    """After a cache rows are few: they stand elsewhere in their tile, beside the other heads of their group."""
    q, k, v = draw(1, 4, 90, 16, dtype=dtype), draw(1, 2, 90, 16, dtype=dtype), draw(1, 2, 90, 24, dtype=dtype)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0])
    for options in ({"causal": True}, {"causal": True, "window": 40, "alibi_slopes": slopes}):
        whole = attention(q, k, v, return_lse=True, **options)
        for n in (1, 7, 33):
            few = attention(q[:, :, -n:], k, v, return_lse=True, **options)
            promises.same_bits(few, tuple(t[:, :, -n:] for t in whole), f"the last {n} rows")
        short = attention(q[:, :, :50], k[:, :, :50], v[:, :, :50], return_lse=True, **options)
        promises.same_bits(short, tuple(t[:, :, :50] for t in whole), "without later keys")


@DTYPES
def test_a_bias_of_the_least_number_in_all_of_a_row_weighs_its_keys_alike(dtype):
    q, k, v = draw(1, 2, 5, 16, dtype=dtype), draw(1, 2, 40, 16, dtype=dtype), draw(1, 2, 40, 16, dtype=dtype)
    got = attention(q, k, v, mask=torch.full((5, 40), torch.finfo(dtype).min, dtype=dtype))
    mean = v.float().mean(2, keepdim=True).expand(got.shape)
    torch.testing.assert_close(got.float(), mean, rtol=2e-2, atol=2e-3)


@DTYPES
def test_packed_sequences_have_the_bits_of_each_alone(dtype):
    lengths_q, lengths_k = (5, 0, 70, 33), (5, 3, 90, 7)
    q, k, v = draw(108, 6, 24, dtype=dtype), draw(105, 2, 24, dtype=dtype), draw(105, 2, 40, dtype=dtype)
    at_q, at_k = (int32(0, *n).cumsum(0).to(torch.int32) for n in (lengths_q, lengths_k))
    for options in ({"causal": True}, {"causal": "upper_left", "window": 9, "sinks": torch.arange(6) / 2}):
        out, lse = attention_varlen(q, k, v, at_q, at_k, return_lse=True, **options)
        for n in range(4):
            rows, keys = slice(at_q[n], at_q[n + 1]), slice(at_k[n], at_k[n + 1])
            one = (t.transpose(0, 1)[None] for t in (q[rows], k[keys], v[keys]))
            alone = attention(*one, return_lse=True, **options)
            promises.same_bits((out[rows].transpose(0, 1)[None], lse[:, rows][None]), alone, f"sequence {n}")


@DTYPES
@pytest.mark.parametrize(("where", "bad"), [("k", math.nan), ("v", math.inf), ("q", math.inf), ("grad_out", math.nan)])
def test_a_hidden_pair_gives_no_gradient_whatever_it_holds(where, bad, dtype):
    q, k, v = draw(1, 2, 40, 16, dtype=dtype), draw(1, 1, 40, 16, dtype=dtype), draw(1, 1, 40, 24, dtype=dtype)
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[:, 30] = False
    mask[30] = False
    out, lse = attention(q, k, v, causal=True, mask=mask, return_lse=True)
    given = {"grad_out": draw(1, 2, 40, 24, dtype=dtype), "q": q, "k": k, "v": v}
    clean = attention_backward(out=out, lse=lse, causal=True, mask=mask, **given)
    spoilt = {name: t.clone() for name, t in given.items()}
    spoilt[where][:, :, 30] = bad
    found = attention_backward(out=out, lse=lse, causal=True, mask=mask, **spoilt)
    promises.same_bits(found, clean, "a hidden pair")
    assert not any(t[:, :, 30].any() for t in found)


@DTYPES
def test_what_a_visible_pair_holds_reaches_every_gradient_that_sees_it(dtype):
    q, k, v = (draw(1, 1, 40, 16, dtype=dtype, seed=i) for i in range(3))
    out, lse = attention(q, k, v, causal=True, return_lse=True)
    k[:, :, 35] = math.nan
    grads = attention_backward(draw(1, 1, 40, 16, dtype=dtype), q, k, v, out, lse, causal=True)
    assert grads[0][:, :, :35].isfinite().all() and grads[0][:, :, 35:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_autograd_takes_the_kernel(dtype, monkeypatch):
    from hexad_kernels.triton import attention_backward as module

    calls, run = [], module.run
    monkeypatch.setattr(module, "run", lambda *args: (calls.append(1), run(*args)))
    leaves = [draw(1, 2, 20, 16, dtype=dtype, seed=i).requires_grad_() for i in range(3)]
    grad = draw(1, 2, 20, 16, dtype=dtype, seed=3)
    got = torch.autograd.grad(attention(*leaves, causal=True), leaves, grad)
    assert calls == [1]
    with hexad_kernels.backend("reference"):
        want = torch.autograd.grad(attention(*leaves, causal=True), leaves, grad)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w, rtol=1e-5 if dtype == torch.float32 else 2e-3, atol=2e-3)


@DTYPES
def test_a_decoded_row_has_the_same_bits_paged_alone_and_in_a_larger_cache(dtype):
    """Lengths on both sides of a split's end; a row of one split skips the second launch."""
    lengths, page = (300, 0, 129, 128, 5), 16
    q = draw(5, 4, 16, dtype=dtype)
    k, v = draw(5, 2, 304, 16, dtype=dtype, seed=1), draw(5, 2, 304, 24, dtype=dtype, seed=2)
    order = torch.randperm(95, generator=torch.Generator().manual_seed(3)).view(5, 19)
    pages = []
    for cache in (k, v):
        store = torch.full((95, 2, page, cache.shape[3]), math.nan, dtype=dtype)
        store[order.flatten()] = cache.unflatten(2, (19, page)).transpose(1, 2).flatten(0, 1)
        pages.append(store)
    for options in ({}, {"window": 150, "sinks": torch.arange(4) / 2}):
        whole = decode(q, k, v, int32(*lengths), return_lse=True, **options)
        table = order.to(torch.int32)
        paged = decode(q, *pages, int32(*lengths), block_table=table, return_lse=True, **options)
        promises.same_bits(paged, whole, "paged")
        for b, n in enumerate(lengths):
            room = max(n, 1)
            alone = decode(
                q[b : b + 1], k[b : b + 1, :, :room], v[b : b + 1, :, :room], int32(n), return_lse=True, **options
            )
            promises.same_bits(alone, tuple(t[b : b + 1] for t in whole), f"row {b} alone")


def guard_pages(*arguments):
    return subprocess.run([sys.executable, "-m", "tests.guard_pages", *arguments], capture_output=True, text=True)


@pytest.fixture
def interpreted(backend_name):
    if backend_name != "triton-interpreted":
        pytest.skip("an interpreted kernel reads the process's own memory")


def test_no_kernel_reads_outside_its_inputs(interpreted):
    done = guard_pages("attention", "attention_varlen", "merge_attention", "attention_backward", "decode")
    assert done.returncode == 0, f"after {done.stdout.splitlines()[-1:]}: {done.stderr[-500:]}"


def test_a_read_outside_an_input_is_found(interpreted):
    done = guard_pages("--planted")
    assert done.stdout == "in bounds\n" and done.returncode < 0

"""attention's Hopper kernel, emulated: bulk copies, wgmma, ping-pong, and the careful second launch."""

import math

import pytest
import torch

import hexad_kernels
from hexad_kernels import attention
from hexad_kernels.op import OPS
from tests import promises
from tests.cases import build
from tests.cases.attention import case
from tests.cuda_emulator.guarded import guarded

CASES = [
    case("causal", (2, 2, 70, 64), causal=True),
    case("many_keys", (1, 2, 130, 64), (1, 290), causal=True),
    case("full", (1, 2, 40, 64), (2, 150)),
    case("few_keys", (1, 2, 150, 64), (1, 60), causal=True),
    case("window", (1, 2, 300, 64), causal=True, window=70),
    case("window_both_sides", (1, 2, 100, 64), (1, 200), window=(7, 30)),
    case("softcap", (1, 1, 33, 64), (1, 140), causal=True, softcap=3.0, scale=0.5),
    case("head_dim_128", (1, 2, 70, 128), (1, 200), causal=True),
    case("head_dim_256", (1, 1, 70, 256), (1, 100), causal=True),
    case("one_row", (3, 4, 1, 64), (2, 129), causal=True),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


@pytest.fixture(autouse=True)
def hopper(backend_name, monkeypatch):
    if backend_name != "cuda-emulated":
        pytest.skip("for the emulated chip")
    monkeypatch.setenv("HEXAD_EMULATED_CHIP", "sm_90")
    monkeypatch.setattr(OPS["attention"], "cuda", (torch.bfloat16, torch.float16))
    with hexad_kernels.backend(backend_name):
        yield


def draw(*shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(c, torch.bfloat16) for c in CASES] + [(c, torch.float16) for c in CASES[7:9]],
    ids=lambda v: getattr(v, "name", str(v)[6:]),
)
def test_accuracy(case, dtype):
    call = build(case, dtype)
    promises.accurate("attention", call, call.map(torch.Tensor.double))


@EACH
def test_writes_exactly_its_output_and_reads_its_inputs(case):
    call = build(case, torch.bfloat16)
    promises.writes_exactly_its_output("attention", call)
    with guarded(at_start=False) as place:
        same = promises.invoke("attention", call.map(lambda t: place(t, "an input")))
    promises.same_bits(promises.invoke("attention", call), same, "on guard pages")


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=lambda c: c.name)
def test_a_row_does_not_depend_on_its_batch(case):
    call = build(case, torch.bfloat16)
    promises.deterministic("attention", call)
    promises.batch_invariant(case, call, lambda given: promises.invoke("attention", given))


def test_strides_do_not_matter_where_bulk_copies_take_them():
    q, k, v = (draw(1, 70, 3, 64, dtype=torch.bfloat16, seed=i).transpose(1, 2) for i in range(3))
    want = attention(q.contiguous(), k.contiguous(), v.contiguous(), causal=True, return_lse=True)
    promises.same_bits(want, attention(q, k, v, causal=True, return_lse=True), "rows before heads")


def test_the_chip_decides(monkeypatch):
    """Without the chip, or with an odd stride, the other kernel serves the call, whose weights are not rounded."""
    q, k, v = (draw(1, 1, 70, 64, dtype=torch.bfloat16, seed=i) for i in range(3))
    here = attention(q, k, v)
    odd = torch.zeros(1, 1, 70, 65, dtype=q.dtype)[..., :64].copy_(q)
    other = attention(odd, k, v)
    monkeypatch.delenv("HEXAD_EMULATED_CHIP")
    assert torch.equal(other, attention(q, k, v)) and not torch.equal(here, other)


@DTYPES
@pytest.mark.parametrize("dim", [64, 256])
def test_what_a_hidden_key_holds_does_not_matter(dtype, dim):
    q, k, v = (draw(1, 2, 200, dim, dtype=dtype, seed=i) for i in range(3))
    clean = attention(q, k, v, causal=True, return_lse=True)
    k[:, :, 160:] = math.nan
    v[:, :, 145] = math.inf
    v[:, :, 150, 3] = -math.inf
    v[:, :, 155:] = math.nan
    dirty = attention(q, k, v, causal=True, return_lse=True)
    promises.same_bits(
        tuple(t[:, :, :145] for t in clean), tuple(t[:, :, :145] for t in dirty), "rows that see finite keys"
    )
    assert (dirty[0][:, :, 145:150] == math.inf).all() and dirty[0][:, :, 150:155, 3].isnan().all()
    assert dirty[0][:, :, 155:].isnan().all()
    promises.same_bits((clean[1][:, :, :160],), (dirty[1][:, :, :160],), "log-sums that see finite keys")
    assert dirty[1][:, :, 160:].isnan().all()


def test_rows_that_see_nothing_are_zero():
    q, k, v = (draw(1, 1, n, 64, dtype=torch.bfloat16, seed=n) for n in (200, 60, 61))
    out, lse = attention(q, k, v[:, :, :60], causal=True, return_lse=True)
    assert (out[:, :, :140] == 0).all() and (lse[:, :, :140] == -math.inf).all()
    assert lse[:, :, 140:].isfinite().all()

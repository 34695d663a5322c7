"""What is special about the Triton kernels: float16, rows in pieces, what stands in for errors, bits shared with
other forms and with the CPU."""

import math
import sys
from importlib.util import find_spec

import pytest
import torch

import hexad_kernels as hk
from hexad_kernels.decode import LARGEST
from tests import promises
from tests.cases import DEVICE, build, cases
from tests.cases.gated_pixelcnn import network

FLOAT32_ONLY = {"gated_pixelcnn", "randn", "step"}


NARROW = [
    (name, next(case for case in found if case.small and "triton" not in case.without))
    for name, found in cases().items()
    if find_spec(f"hexad_kernels.triton.{name}") and name not in FLOAT32_ONLY
]


@pytest.fixture(autouse=True)
def forced(backend_name):
    if not backend_name.startswith("triton"):
        pytest.skip("Triton's kernels")
    with hk.backend(backend_name):
        yield


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@pytest.mark.parametrize(("name", "case"), NARROW, ids=lambda v: getattr(v, "name", v))
def test_float16(name, case):
    call = build(case, torch.float16)
    promises.accurate(name, call, call.map(lambda t: t.double() if t.is_floating_point() else t))


def test_randn_has_the_cpu_kernels_bits():
    seeds = torch.tensor([1, -5, 2**62 + 12345])
    ours = hk.randn(seeds.to(DEVICE), (301,), offset=2**33 + 5)
    with hk.backend("cpu"):
        assert torch.equal(ours.cpu(), hk.randn(seeds, (301,), offset=2**33 + 5))


@pytest.mark.parametrize("kind", ["layer", "rms", "group"])
def test_norm_of_rows_in_pieces(kind):
    x, groups = (draw(2, 4, 9000) + 3, 2) if kind == "group" else (draw(2, 18000) + 3, None)
    given = {"weight": draw(x.shape[1], seed=1), "kind": kind, "num_groups": groups, "activation": "silu"}
    out = hk.norm(x, **given)
    with hk.backend("reference"):
        exact = hk.norm(x.double(), **given | {"weight": given["weight"].double()})
    assert (out - exact).abs().max() < 2e-6


def test_sample_marks_rows_that_cannot_be_drawn():
    logits = draw(3, 50)
    logits[1, 7], logits[2] = math.nan, -math.inf
    for options in ({}, {"top_p": 0.9}, {"temperature": 0.0}):
        tokens = hk.sample(logits, torch.tensor([1, 2, 3], device=DEVICE), **options).tolist()
        assert 0 <= tokens[0] < 50 and tokens[1:] == [-1, -2]


def test_sample_draws_only_infinite_logits():
    logits = draw(2, 40)
    logits[:, 5] = logits[:, 9] = math.inf
    assert set(hk.sample(logits, torch.tensor([1, 2], device=DEVICE), top_k=3, top_p=0.99).tolist()) <= {5, 9}


def test_vq_marks_a_row_without_a_distance():
    x, codebook = draw(3, 4), draw(5, 4, seed=1)
    x[1, 2] = math.nan
    quantized, index = hk.vq(x, codebook)
    assert index[1] == -1 and quantized[1].isnan().all()
    assert torch.equal(quantized[0], codebook[index[0]]) and torch.equal(quantized[2], codebook[index[2]])


@pytest.mark.parametrize("kept", LARGEST, ids=str)
@pytest.mark.parametrize("rotated", [False, True])
def test_append_kv_quantises(rotated, kept):
    k, v = draw(2, 2, 3, 24), draw(2, 2, 3, 16, seed=1)
    v[0, 0, 0] = torch.logspace(-7, 0, 16) * (-1) ** torch.arange(16)  # what float8 has no leading bit for, too
    v[0, 1, 2, 3], v[1, 0, 0] = math.nan, 0.0
    lengths = torch.tensor([0, 4], dtype=torch.int32, device=DEVICE)
    angle = torch.arange(8.0, device=DEVICE)[:, None] * torch.rand(12, device=DEVICE)
    tables = {"cos": angle.cos(), "sin": angle.sin()} if rotated else {}
    made = []
    for name in (None, "reference"):
        caches = [torch.zeros(2, 2, 8, d, dtype=kept, device=DEVICE) for d in (24, 16)]
        scales = [torch.zeros(2, 2, 8, device=DEVICE) for _ in range(2)]
        call = lambda: hk.append_kv(k, v, *caches, lengths, k_scale=scales[0], v_scale=scales[1], **tables)  # noqa: B023, E731
        if name:
            with hk.backend(name):
                call()
        else:
            call()
        made.append((caches, scales))
    (ours, our_scales), (caches, scales) = made
    for a, b in zip(our_scales, scales):
        assert torch.allclose(a, b, rtol=1e-6, equal_nan=True)
    # A fused multiply-add in the rotation may move a value over the border to its neighbour.
    ours, caches = ([c.view(torch.int8) for c in found] for found in (ours, caches))
    assert all((a.int() - b.int()).abs().max() <= rotated for a, b in zip(ours, caches))


def test_linear_rows_have_the_same_bits_however_many():
    x, weight = draw(16, 1100, dtype=torch.bfloat16), draw(48, 1100, dtype=torch.bfloat16, seed=1)
    whole = hk.linear(x, weight, activation="silu_gate")
    for rows in (1, 5):
        assert torch.equal(whole[:rows], hk.linear(x[:rows], weight, activation="silu_gate"))
    with pytest.raises(hk.BackendError, match="17 rows"):
        hk.linear(draw(17, 8), draw(4, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu_gate", "gelu_gate"])
def test_linear_finishes_torchs_product_in_one_pass(activation, dtype, monkeypatch):
    from hexad_kernels import linear
    from hexad_kernels.activation import ACTIVATIONS, GATES, finished
    from hexad_kernels.triton import linear as kernels

    ran, launch = [], kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda kernel, *args: (ran.append(kernel), launch(kernel, *args)))
    code, by_torch = ACTIVATIONS[activation], sys.modules[linear.__module__]._by_torch
    x, weight, bias = (
        draw(3, 7, 40, dtype=dtype),
        draw(530, 40, dtype=dtype, seed=1) / 8,
        draw(530, dtype=dtype, seed=2),
    )
    width = 265 if code in GATES else 530
    wide = draw(3, 7, 2 * width, dtype=dtype, seed=3)
    for residual in (None, wide[..., ::2])[activation is None :]:
        out = by_torch(x, weight, bias, code, residual)
        want = finished(torch.nn.functional.linear(x, weight).float(), bias, code, residual, torch.float32)
        assert out.shape == want.shape and out.dtype == dtype
        torch.testing.assert_close(out.float(), want, rtol=torch.finfo(dtype).eps, atol=4e-6)
    assert set(ran) == {kernels.finish_kernel}


def test_maskedconv_forms_share_their_bits():
    x, weight = draw(2, 20, 4, 5), draw(33, 20, 3, 3, seed=1)
    weight[:, :, 2] = math.nan
    whole = hk.maskedconv(x, weight)
    assert torch.equal(whole[:, :, 2], hk.maskedconv(x, weight, row=2))
    assert torch.equal(whole[:, :, 2, 4], hk.maskedconv(x, weight, row=2, col=4))


def pixelcnn(batch):
    net = {"levels": 7, "channels": 5, "layers": 3, "kernel": 3}
    g = torch.Generator().manual_seed(0)
    weights = network(g, height=3, width=2, **net).to(DEVICE, torch.float32)
    image = torch.randint(7, (batch, 3, 2), generator=g).to(DEVICE)
    return net, image, weights, torch.arange(batch, device=DEVICE) - 1


@pytest.mark.parametrize("drawn", [False, True])
def test_gated_pixelcnn_is_the_cpus_however_its_pixels_are_cut(drawn):
    net, image, weights, seeds = pixelcnn(2)
    mine, pieces = image.clone(), image.clone()
    seeds = seeds if drawn else None
    logits = hk.gated_pixelcnn(mine, weights, None, seeds, **net)
    cache = hk.gated_pixelcnn_cache(image, weights, **net).fill_(math.nan)
    cut = [hk.gated_pixelcnn(pieces, weights, cache, seeds, begin=b, end=e, **net) for b, e in ((0, 1), (1, 4), (4, 6))]
    assert torch.equal(torch.cat(cut, 1), logits) and torch.equal(pieces, mine)
    assert cache[:, 0].tolist() == [6, 6]
    theirs = image.cpu()
    with hk.backend("cpu"):
        want = hk.gated_pixelcnn(theirs, weights.cpu(), None, None if seeds is None else seeds.cpu(), **net)
    assert torch.equal(mine.cpu(), theirs)
    torch.testing.assert_close(logits.cpu(), want)


def test_gated_pixelcnn_goes_on_from_the_cpus_cache():
    net, image, weights, _ = pixelcnn(2)
    cache = hk.gated_pixelcnn_cache(image.cpu(), weights.cpu(), **net)
    with hk.backend("cpu"):
        hk.gated_pixelcnn(image.cpu(), weights.cpu(), cache, end=3, **net)
    rest = hk.gated_pixelcnn(image, weights, cache.to(DEVICE), begin=3, **net)
    torch.testing.assert_close(rest, hk.gated_pixelcnn(image, weights, **net)[:, 3:])


def test_gated_pixelcnn_marks_pixels_that_cannot_be_drawn():
    net, image, weights, seeds = pixelcnn(1)
    place = weights[-6 * 7 :].view(6, 7)
    place[1, 2], place[4] = math.nan, -math.inf
    hk.gated_pixelcnn(image, weights, None, seeds, **net)
    found = image.flatten().tolist()
    assert found[1] == -1 and found[4] == -2 and all(0 <= found[i] < 7 for i in (0, 2, 3, 5))


def test_coupling_differentiates_through_its_kernel(monkeypatch):
    from hexad_kernels.triton import coupling_backward

    ran, run = [], coupling_backward.run
    monkeypatch.setattr(coupling_backward, "run", lambda *args: (ran.append(1), run(*args)))
    x, shift, scale = (draw(*s, seed=i).requires_grad_() for i, s in enumerate([(2, 4, 3), (2, 2, 3), (2, 2, 3)]))
    y, log_det = hk.coupling(x, shift, scale, scale_map="tanh")
    ours = torch.autograd.grad(y.square().sum() + log_det.sum(), (x, shift, scale))
    with hk.backend("reference"):
        y, log_det = hk.coupling(x, shift, scale, scale_map="tanh")
        theirs = torch.autograd.grad(y.square().sum() + log_det.sum(), (x, shift, scale))
    assert ran and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs))

"""maskedconv beyond the promises: conv2d with masked weights, the forms for a row and a pixel, causality."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

import hexad_kernels
from hexad_kernels import maskedconv, native
from hexad_kernels.maskedconv import MASKS


def mask_of(name, kh, kw):
    """The mask from its definition, tap by tap."""
    ci, cj = kh // 2, kw // 2
    seen = {
        "A": lambda i, j: i < ci or (i == ci and j < cj),
        "B": lambda i, j: i < ci or (i == ci and j <= cj),
        "above": lambda i, j: i < ci,
        "above_or_at": lambda i, j: i <= ci,
    }[name]
    return torch.tensor([[float(seen(i, j)) for j in range(kw)] for i in range(kh)])


def inputs(batch=2, channels=3, outputs=19, size=(5, 6), kernel=(3, 3), dtype=torch.float32):
    g = torch.Generator().manual_seed(2)
    shapes = (batch, channels, *size), (outputs, channels, *kernel), (outputs,)
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 3), (1, 7), (7, 7)], ids=str)
def test_agrees_with_conv2d(mask, kernel):
    x, w, b = inputs(kernel=kernel)
    want = F.conv2d(x, w * mask_of(mask, *kernel), b, padding=(kernel[0] // 2, kernel[1] // 2))
    assert torch.allclose(maskedconv(x, w, b, mask=mask), want, rtol=1e-4, atol=1e-4)
    with hexad_kernels.backend("reference"):
        assert torch.allclose(maskedconv(x, w, b, mask=mask), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cpu", "reference"])
@pytest.mark.parametrize("mask", MASKS)
def test_masked_weights_do_not_count(name, mask):
    x, w, b = inputs(kernel=(3, 5))
    keep = mask_of(mask, 3, 5).bool()
    with hexad_kernels.backend(name):
        want = maskedconv(x, w, b, mask=mask)
        for junk in (float("nan"), float("inf"), -7.0):
            got = maskedconv(x, torch.where(keep, w, junk), b, mask=mask)
            assert torch.equal(got, want) and got.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_row_and_pixel_are_the_full_forms_bits(mask, dtype):
    x, w, b = inputs(batch=3, kernel=(3, 5), dtype=dtype)
    full = maskedconv(x, w, b, mask=mask)
    for row in range(x.shape[2]):
        assert torch.equal(maskedconv(x, w, b, mask=mask, row=row), full[:, :, row])
        for col in range(x.shape[3]):
            assert torch.equal(maskedconv(x, w, b, mask=mask, row=row, col=col), full[:, :, row, col])


@pytest.mark.parametrize("mask", MASKS)
def test_sees_only_what_comes_before(mask):
    """The Jacobian's support is the mask: nothing else, and nothing less."""
    x, w, b = inputs(batch=1, channels=1, outputs=1, size=(3, 4), dtype=torch.float64)
    with hexad_kernels.backend("reference"):
        jacobian = torch.autograd.functional.jacobian(lambda t: maskedconv(t, w, b, mask=mask), x).view(3, 4, 3, 4)
    keep = mask_of(mask, 3, 3)
    for h in range(3):
        for v in range(4):
            for i in range(3):
                for j in range(4):
                    near = abs(i - h) <= 1 and abs(j - v) <= 1
                    assert (jacobian[h, v, i, j] != 0) == bool(near and keep[i - h + 1, j - v + 1]), (h, v, i, j)


def test_what_a_pixel_does_not_see_may_be_anything():
    """Sampling asks for a pixel while the later ones still hold whatever memory held."""
    x, w, b = inputs()
    want = maskedconv(x, w, b, mask="A", row=2, col=3)
    x[:, :, 2, 3:] = float("nan")
    x[:, :, 3:] = float("nan")
    assert torch.equal(maskedconv(x, w, b, mask="A", row=2, col=3), want)


def test_views():
    x, w, b = inputs()
    want = maskedconv(x, w, b)
    assert torch.equal(maskedconv(x.to(memory_format=torch.channels_last), w, b), want)
    wide = torch.zeros(2, 3, 5, 9)
    wide[..., 2:8] = x
    assert torch.equal(maskedconv(wide[..., 2:8], w.transpose(2, 3).contiguous().transpose(2, 3), b), want)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("where", [{}, {"row": 1}, {"row": 2, "col": 0}], ids=str)
def test_gradients(mask, where):
    x, w, b = inputs(channels=2, outputs=2, size=(3, 2), dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    assert torch.autograd.gradcheck(lambda *a: maskedconv(*a, mask=mask, **where), leaves)


def test_float32_gradients_agree_with_plain_autograd_and_masked_ones_are_zero():
    leaves = [t.requires_grad_() for t in inputs()]
    grads = []
    for name in ("cpu", "reference"):
        with hexad_kernels.backend(name):
            grads.append(torch.autograd.grad(maskedconv(*leaves).square().sum(), leaves))
    for kernel, plain in zip(*grads):
        assert torch.allclose(kernel, plain, rtol=1e-4, atol=1e-3)
    assert (grads[0][1][:, :, mask_of("B", 3, 3) == 0] == 0).all()


def test_compiles_without_graph_breaks_and_once_for_all_pixels():
    x, w, b = inputs()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, row, col: maskedconv(x, w, b, row=row, col=col) + 1, fullgraph=True, backend=counter
    )
    for row, col in ((2, 3), (3, 4), (4, 2), (2, 5), (3, 3)):
        assert torch.equal(compiled(x, row, col), maskedconv(x, w, b, row=row, col=col) + 1)
    assert counter.frame_count <= 3


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"x": 3}, TypeError, "x: got int, wants a torch.Tensor"),
        ({"x": torch.zeros(3, 5, 6)}, ValueError, "x: got 3 dimensions (3, 5, 6), wants 4"),
        ({"x": torch.zeros(2, 3, 5, 6, dtype=torch.uint8)}, TypeError, "x: got uint8"),
        ({"weight": torch.zeros(19, 4, 3, 3)}, ValueError, "weight: got shape (19, 4, 3, 3), wants (any, 3, odd, odd)"),
        ({"weight": torch.zeros(19, 3, 2, 3)}, ValueError, "weight: got shape (19, 3, 2, 3), wants (any, 3, odd, odd)"),
        ({"weight": torch.zeros(19, 3, 3, 3).bfloat16()}, TypeError, "weight: got bfloat16, wants x's float32"),
        ({"bias": torch.zeros(3)}, ValueError, "bias: got shape (3,), wants (19) = weight's output channels"),
        ({"bias": torch.zeros(19, device="meta")}, ValueError, "bias: is on meta, wants x's device cpu"),
        ({"mask": "C"}, ValueError, "mask: got 'C', wants one of 'A', 'B', 'above', 'above_or_at'"),
        ({"row": 5}, ValueError, "row: got 5, wants 0 <= row < 5"),
        ({"row": -1}, ValueError, "row: got -1, wants 0 <= row < 5"),
        ({"row": 1, "col": 6}, ValueError, "col: got 6, wants 0 <= col < 6"),
        ({"col": 1}, ValueError, "row: got None with col 1, wants the pixel's row"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change, error, text):
    x, w, b = inputs()
    with pytest.raises(error) as caught:
        maskedconv(**({"x": x, "weight": w, "bias": b} | change))
    assert text in str(caught.value)


def test_the_door_guards_memory():
    x, w, b = inputs()
    y, space = torch.empty(2, 19, 5, 6), torch.empty(32 * 15 + torch.get_num_threads() * (64 * 15 + 16))
    native.C.maskedconv(x, w, b, y, space, 5, -1, -1)
    for bad in ((x, w, b, y[:1], space, 5, -1, -1), (x, w[:, :2], b, y, space, 5, -1, -1),
                (x, w, b, y, space[:-1], 5, -1, -1), (x, w, b, y, space[:0], 5, -1, -1),
                (x, w, b, y, space, 10, -1, -1), (x, w, b, y, space, 5, 2, -1), (x, w, b, y[:, :, 0], space, 5, 0, -1),
                (x, w, b, y[:, :, 0].contiguous(), space, 5, 5, -1), (x, w, b, y, space, 5, -1, 2)):  # fmt: skip
        with pytest.raises(ValueError):
            native.C.maskedconv(*bad)


def test_the_default_dtype_does_not_reach_the_workspace():
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    want = maskedconv(x, weight)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(maskedconv(x, weight), want)
    finally:
        torch.set_default_dtype(torch.float32)

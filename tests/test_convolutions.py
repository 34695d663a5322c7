"""Convolutions as one product and by Winograd, against float64; when each is taken."""

import pytest
import torch
from torch import nn

from hexad.integrations import convolutions
from hexad.integrations.layers import State


@pytest.fixture(autouse=True)
def no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def wanted(conv, x):
    bias = None if conv.bias is None else conv.bias.double()
    return torch.conv2d(x.double(), conv.weight.double(), bias, conv.stride, conv.padding)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("shape", "outputs", "size"), [((2, 5, 4, 7), 3, 3), ((1, 24, 1, 1), 40, 3), ((3, 6, 2, 9), 17, 1)]
)
def test_product(shape, outputs, size, stride, bias):
    x, conv = torch.randn(shape), nn.Conv2d(shape[1], outputs, size, stride, padding=size // 2, bias=bias)
    y = convolutions.product(x, State("", convolutions.direct), conv).permute(0, 3, 1, 2)
    torch.testing.assert_close(y.double(), wanted(conv, x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 5, 16, 9), (3, 20, 1, 50)])
def test_pointwise(shape, bias):
    x, conv = torch.randn(shape), nn.Conv2d(shape[1], 33, 1, bias=bias)
    y = convolutions.pointwise(x, conv)
    torch.testing.assert_close(y.double(), wanted(conv, x), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "stride", "shape", "form"),
    [
        (3, 1, (1, 32, 8, 8), "product"), (3, 2, (2, 32, 16, 16), "product"), (1, 1, (1, 8, 4, 4), "product"),
        (3, 1, (1, 32, 16, 16), "winograd"), (3, 1, (2, 32, 8, 8), "winograd"), (1, 1, (1, 8, 12, 12), "pointwise"),
        (3, 1, (1, 31, 16, 16), None), (3, 2, (1, 32, 32, 32), None), (1, 2, (1, 8, 40, 40), None),
    ],
)  # fmt: skip
def test_which_form_is_taken(size, stride, shape, form, monkeypatch):
    conv, taken = nn.Conv2d(shape[1], 32, size, stride, padding=size // 2), []
    for name in ("product", "winograd", "pointwise"):
        run = getattr(convolutions, name)
        monkeypatch.setattr(convolutions, name, lambda *a, name=name, run=run: taken.append(name) or run(*a))
    assert convolutions.fits(conv)
    x, conv._hexad = torch.randn(shape), State("", convolutions.fastest)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        y = convolutions.fastest(conv, given)
        torch.testing.assert_close(y.double(), wanted(conv, x), rtol=0, atol=4e-5)
    assert set(taken) == ({form} if form else set())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 70, 8, 12), (1, 128, 32, 32)])
def test_winograd(shape, bias):
    x, conv = torch.randn(shape), nn.Conv2d(shape[1], 66, 3, padding=1, bias=bias)
    y = convolutions.winograd(x, State("", convolutions.direct), conv)
    torch.testing.assert_close(y.double(), wanted(conv, x), rtol=0, atol=4e-5)


def test_values_loaded_later_are_used():
    x, conv, state = torch.randn(1, 4, 4, 4), nn.Conv2d(4, 4, 3, padding=1), State("", convolutions.direct)
    for run in (convolutions.winograd, lambda *a: convolutions.product(*a).permute(0, 3, 1, 2)):
        run(x, state, conv)
        conv.weight.mul_(2)
        torch.testing.assert_close(run(x, state, conv).double(), wanted(conv, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"stride": 3}, {"groups": 2}, {"dilation": 2}, {"padding": 0}, {"padding_mode": "circular"}]
)
def test_other_forms_are_the_hosts(options):
    assert not convolutions.fits(nn.Conv2d(4, 4, 3, **{"padding": 1, **options}))


@pytest.mark.parametrize("side", [8, 16])
def test_a_sequence(side):
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.LeakyReLU(0.0), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(32, 40, 3, padding=1), nn.LeakyReLU(0.0), nn.Conv2d(40, 6, 3, padding=1),
    )  # fmt: skip
    few = convolutions.ChannelsLast.of(net)
    net.requires_grad_(False)
    x = torch.randn(2, 3, side, side)
    assert few.serves(x) and not few.serves(x.double())
    torch.testing.assert_close(few(x), net(x), rtol=0, atol=1e-5)
    assert convolutions.ChannelsLast.of(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))) is None

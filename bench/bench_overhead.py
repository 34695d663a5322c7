"""What a call costs beside its kernel: the Python path of small tensors, and taking turns with torch's threads."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import hexad_kernels
from bench.eager import eager
from bench.timing import interleaved

x, weight, bias, square = torch.randn(2, 8), torch.randn(8), torch.randn(8), torch.randn(8, 8)
image = torch.randn(2, 8, 2, 2)
SMALL = {
    "norm": (lambda: hexad_kernels.norm(x, weight, bias), lambda: F.layer_norm(x, (8,), weight, bias)),
    "linear": (lambda: hexad_kernels.linear(x, square, bias), lambda: F.linear(x, square, bias)),
    "invconv": (
        lambda: hexad_kernels.invconv(image, square, bias),
        lambda: F.conv2d(image, square[:, :, None, None], bias),
    ),
}
# Outputs and options that torch has as well.
heads, angles = torch.randn(1, 2, 4, 16), torch.randn(2, 8, 8)
SMALL["attention"] = (
    lambda: hexad_kernels.attention(heads, heads, heads, causal=True),
    lambda: F.scaled_dot_product_attention(heads, heads, heads, is_causal=True),
)
for name, args in {"rope": (heads, *angles), "coupling": (image, *torch.randn(2, 2, 4, 2, 2))}.items():
    SMALL[name] = partial(getattr(hexad_kernels, name), *args), eager(name, args, {})


@pytest.mark.parametrize("op", SMALL)
@torch.no_grad()
def test_call(benchmark, op):
    """An eager call of three small tensors, beside torch's own."""
    ours, theirs = SMALL[op]
    torch.testing.assert_close(ours(), theirs())
    mine, other = interleaved([ours, theirs])
    benchmark.pedantic(ours, rounds=20, iterations=1000)
    benchmark.extra_info.update(op="overhead", case=op, dtype="float32", seconds=mine, vs_eager=other / mine)


@torch.no_grad()
def test_taking_turns_with_torch(benchmark):
    """Calls in turns take the sum of what they take alone: torch and hexad share one team of threads."""
    a, hidden, kernel = torch.randn(512, 512), torch.randn(64, 768), torch.randn(768, 768)
    torch.testing.assert_close(hexad_kernels.linear(hidden, kernel), hidden @ kernel.T, rtol=1e-4, atol=1e-3)

    def theirs():
        return a @ a

    def ours():
        return hexad_kernels.linear(hidden, kernel)

    def turns():
        theirs()
        ours()

    mine, other, both = interleaved([ours, theirs, turns], seconds=1.0)
    benchmark.pedantic(turns, rounds=5, iterations=20)
    benchmark.extra_info.update(
        op="overhead", case="turns", dtype="float32", seconds=both, vs_eager=(mine + other) / both
    )

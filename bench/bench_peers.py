"""The same work in the alternatives (bench/peers): results compared, then both timed in turns.

`make bench-peers` installs them, runs this and prints the table.
"""

import pytest
import torch
from tests.cases import build, cases

import hexad_kernels
from bench import peers
from bench.timing import interleaved

OPS = ("attention", "linear", "norm", "coupling", "invconv")
LOADED = {name: peers.load(name) for name in peers.NAMES}
CASES = [
    (name, op, case)
    for name, (peer, _) in LOADED.items()
    for op in OPS
    for case in cases()[op]
    if hasattr(peer, op) and (case.bench or case.bench_only) and torch.float32 in case.dtypes
]


def label(value):
    return getattr(value, "name", None) or str(value)


def first(result):
    return result[0] if isinstance(result, tuple) else result


def compare(benchmark, ours, theirs, **info):
    torch.testing.assert_close(first(theirs()), first(ours()), rtol=2e-4, atol=2e-4)
    mine, other = interleaved([ours, theirs])
    benchmark.pedantic(ours, rounds=3, iterations=max(1, int(0.02 / mine)))
    benchmark.extra_info.update(dtype="float32", seconds=mine, vs_peer=other / mine, **info)


@pytest.mark.parametrize("name", peers.NAMES)
def test_it_is_installed(name):
    peer, why = LOADED[name]
    if peer is None:
        pytest.skip(why)


@pytest.mark.parametrize(("name", "op", "case"), CASES, ids=label)
@torch.no_grad()
def test_op(benchmark, name, op, case):
    call = build(case, torch.float32)
    theirs = getattr(LOADED[name][0], op)(*call.args, **call.kwargs)
    if theirs is None:
        pytest.skip(f"{name} has no form of {op} for this case")
    ours = getattr(hexad_kernels, op)
    compare(benchmark, lambda: ours(*call.args, **call.kwargs), theirs, op=op, case=case.name, peer=name)


@pytest.mark.skipif(LOADED["diffusers"][0] is None, reason=LOADED["diffusers"][1])
@pytest.mark.parametrize("shape", [(4, 4, 64, 64), (4, 4, 256, 256)], ids=str)
@torch.no_grad()
def test_step(benchmark, shape):
    """Guidance and a DDIM step, against diffusers' own arithmetic and scheduler."""
    x, output, uncond = (torch.randn(shape) for _ in range(3))
    theirs, table = LOADED["diffusers"][0].ddim(x, output, uncond, 4.0)
    case = "x".join(map(str, shape))
    compare(
        benchmark,
        lambda: hexad_kernels.step(table, 0, x, output, uncond),
        theirs,
        op="step",
        case=case,
        peer="diffusers",
    )

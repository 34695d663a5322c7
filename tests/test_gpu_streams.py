"""What only a device shows: kernels run on the caller's stream, and a captured graph replays them with new inputs."""

import pytest
import torch

import hexad_kernels
from hexad_kernels.op import OPS
from tests.cases import build, cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees no CUDA device")

CALLS = [
    (name, next(case for case in found if case.small and not case.without and case.batch), backend)
    for name, found in cases().items()
    for backend in ("cuda", "triton")
    if any(case.small and not case.without and case.batch for case in found)
]


def label(value):
    return getattr(value, "name", value)


@pytest.fixture
def call(name, case, backend):
    made = build(case, case.dtypes[0]).map(lambda t: t.cuda())
    flat = hexad_kernels.explain(name, *made.args, **made.kwargs).arguments
    if reason := OPS[name].refusal(backend, flat):
        pytest.skip(reason)
    return made


def run(name, call):
    out = getattr(hexad_kernels, name)(*call.args, **call.kwargs)
    if out is None:
        return [t for t in call.args if isinstance(t, torch.Tensor)]
    return list(out) if isinstance(out, tuple) else [out]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize(("name", "case", "backend"), CALLS, ids=label)
def test_a_side_stream_orders_kernel_and_copies(name, case, backend, call):
    """Inputs arrive late on the stream; a kernel on another stream would read what was there before."""
    with torch.no_grad(), hexad_kernels.backend(backend):
        wanted = [t.clone() for t in run(name, call.map(torch.Tensor.clone))]
        late = call.map(torch.zeros_like)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            targets, sources = [], []
            late.map(lambda t: targets.append(t) or t)
            call.map(lambda t: sources.append(t) or t)
            for target, source in zip(targets, sources):
                target.copy_(source)
            found = run(name, late)
        side.synchronize()
    assert same(wanted, found)


@pytest.mark.parametrize(("name", "case", "backend"), CALLS, ids=label)
def test_a_captured_graph_replays_with_new_inputs(name, case, backend, call):
    with torch.no_grad(), hexad_kernels.backend(backend):
        static = call.map(torch.Tensor.clone)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(name, static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run(name, static)
        fresh = call.map(lambda t: t.flip(0).contiguous() if t.is_floating_point() and t.ndim > 2 else t.clone())
        wanted = [t.clone() for t in run(name, fresh.map(torch.Tensor.clone))]
        targets, sources = [], []
        static.map(lambda t: targets.append(t) or t)
        fresh.map(lambda t: sources.append(t) or t)
        for _ in range(2):
            for target, source in zip(targets, sources):
                target.copy_(source)
            graph.replay()
            torch.cuda.synchronize()
            assert same(wanted, found)


@pytest.mark.parametrize("kernels", ["cuda", "triton"])
def test_a_graph_of_one_step_replays_a_whole_loop_with_its_own_noise(kernels):
    """The index is on the device and the graph moves it on; the noise is the CPU's, bit for bit."""
    steps, shape = 10, (3, 4, 16, 16)
    g = torch.Generator().manual_seed(0)
    table = torch.zeros(steps, 4, 8)
    table[:, 1, [0, 1, 7]] = torch.rand(steps, 3, generator=g)
    seeds = torch.tensor([1, 2**62, -5])
    start, output = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    with hexad_kernels.backend(kernels):
        for index in range(steps):
            noise = hexad_kernels.randn(seeds.cuda(), shape[1:], offset=index + 1)
            with hexad_kernels.backend("cpu"):
                assert torch.equal(noise.cpu(), hexad_kernels.randn(seeds, shape[1:], offset=index + 1))
        x, index = start.cuda(), torch.zeros(1, dtype=torch.int64, device="cuda")
        static = table.cuda(), output.cuda(), seeds.cuda()

        def once():
            x.copy_(hexad_kernels.step(static[0], index, x, static[1], seeds=static[2])[0])
            index.add_(1)

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            once()
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
        x.copy_(start), index.zero_()
        wanted = start.cuda()
        for i in range(steps):
            graph.replay()
            wanted = hexad_kernels.step(static[0], i, wanted, static[1], seeds=static[2])[0]
    assert torch.equal(x, wanted)

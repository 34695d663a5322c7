"""Every op at the shapes of tests/cases: correct first, then timed against torch eager and torch.compile.

`make bench` runs this and prints the table (bench/report.py).
"""

import pytest
import torch
from tests import promises
from tests.cases import Work, build, cases

import hexad_kernels
from bench import eager as torch_side
from bench.timing import with_roofs

CASES = [
    (name, case, dtype)
    for name, found in cases().items()
    for case in found
    if case.bench or case.bench_only
    for dtype in case.dtypes
]

# Ops that read far more than they write: read bandwidth is their roof, copy's is everyone else's.
READERS = {"decode", "linear", "linear_packed", "sample", "vq"}


def label(value):
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


@pytest.mark.parametrize(("name", "case", "dtype"), CASES, ids=label)
def test_op(benchmark, name, case, dtype):
    call = build(case, dtype)
    work = case.work or Work(0, 0)
    size = 4 if dtype == torch.float32 else 2
    promises.accurate(name, call, call.map(lambda t: t.double() if t.is_floating_point() else t))

    def ours():
        return getattr(hexad_kernels, name)(*call.args, **call.kwargs)

    with torch.no_grad():
        plain = torch_side.eager(name, call.args, call.kwargs)
        compiled = torch_side.compiled(name, call.args, call.kwargs) if dtype == torch.float32 else None
        (mine, theirs, inductor), roofs = with_roofs([ours, plain, compiled], work.bytes * size / 4 / 2**20)
        benchmark.pedantic(ours, rounds=5, iterations=max(1, int(0.02 / mine)))
    gbs, gflops = work.bytes * size / 4 / mine / 1e9, work.flops / mine / 1e9
    of_memory = gbs / (roofs.read if name in READERS else roofs.copy)
    of_arithmetic = gflops / roofs.flops(dtype)
    benchmark.extra_info.update(
        op=name,
        case=case.name,
        dtype=label(dtype),
        isa=hexad_kernels.machine()["isa"],
        seconds=mine,
        gbs=gbs,
        gflops=gflops,
        intensity=work.flops / max(work.bytes * size / 4, 1),
        bound="memory" if of_memory >= of_arithmetic else "arithmetic",
        roof_fraction=max(of_memory, of_arithmetic),
        memory_fraction=of_memory,
        vs_eager=theirs / mine,
        vs_compile=inductor / mine,
        roofs=roofs.as_dict(),
    )

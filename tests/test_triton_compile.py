"""Triton kernels compile for the chips we serve, from a machine without one, and stay within the BUDGET that stands
beside each: registers, shared memory, no spills, and the matrix instruction where there must be one. Kernels are
taken as run() launches them for a case, warps and stages included.

    BUDGET = {"<case> <dtype>": {"<target>": (registers, shared), ..., "matrix": True}}

A target that a line leaves out isn't compiled. "matrix" may be left out; True asks for the chip's widest instruction,
"narrow" for any (few rows fill no wide one).
"""

import os
import re
import subprocess
import sys
import time
from functools import cache, partial
from importlib import import_module
from operator import itemgetter
from pathlib import Path

import pytest
import torch

from hexad_kernels.op import OPS
from tests import promises
from tests.cases import all_cases, build

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

FOLDER = Path(__file__).parents[1] / "kernels/hexad_kernels/triton"
OPS_HERE = sorted(p.stem for p in FOLDER.glob("[a-z]*.py") if p.stem != "common")
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
WIDE = {"sm_80": r"\b[HI]MMA\.", "sm_90": r"\b[HIQ]GMMA\.", "sm_100": r"\bUTC[A-Z]MMA", "gfx942": "v_mfma"}
NARROW = {"sm_90": r"\b[HIQ]G?MMA\.", "sm_100": r"\bUTC[A-Z]MMA|\b[HI]MMA\."}
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
# What the figures were measured with: another compiler allots registers as it pleases.
MEASURED_WITH = "3.7."

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton's tools are for Linux")


def module_of(op):
    return import_module(f"hexad_kernels.triton.{op}")


LINES = [(op, line) for op in OPS_HERE for line in getattr(module_of(op), "BUDGET", {})]


@pytest.fixture(scope="module", autouse=True)
def fresh_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def launches(monkeypatch, op, line, target):
    """What run() would launch on the target: (kernel, args, options)."""
    module, made = module_of(op), []
    monkeypatch.setattr(module, "launch", lambda kernel, grid, device, *args, **kw: made.append((kernel, args, kw)))
    monkeypatch.setattr(module, "INTERPRETED", False, raising=False)
    monkeypatch.setattr(module, "target", lambda device: target, raising=False)
    module.run(*call_of(op, line))
    return made


@cache
def call_of(op, line):
    name, dtype = line.split()
    case = next(case for case in all_cases()[op] if case.name == name)
    arguments = promises.flat_arguments(op, build(case, getattr(torch, dtype)))
    return OPS[op].contract(*arguments), *arguments


def specialised(kernel, args):
    """As a launch would: 1 and None are constants, multiples of 16 are known as such."""
    signature, constants, attributes = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        may = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1 and may):
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0
        else:
            signature[parameter.name], aligned = "fp32", False
        if may and aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


@cache
def used(kernel, signature, constants, attributes, options, target, folder):
    """(registers, shared bytes, spilled bytes, seconds, what gives the machine code) of one kernel."""
    begin = time.process_time() + os.times().children_user
    source = ASTSource(fn=kernel, signature=dict(signature), constexprs=dict(constants), attrs=dict(attributes))
    binary = triton.compile(source, target=TARGETS[target], options=dict(options))
    shared = binary.metadata.shared
    if target.startswith("gfx"):
        text = binary.asm["amdgcn"]
        count = {key: int(re.search(rf"{key}:\s*(\d+)", text)[1]) for key in (r"\.vgpr_count", r"\.vgpr_spill_count")}
        count["scratch"] = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)[1])
        registers, _, spilled = count.values()
        spilled += count[r"\.vgpr_spill_count"]
        code = text.__str__
    else:
        path = folder / f"{len(list(folder.iterdir()))}.cubin"
        path.write_bytes(binary.asm["cubin"])
        text, code = dumped(path, "-res-usage"), partial(dumped, path, "-sass")
        registers, *bytes_spilled = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL"))
        spilled = sum(bytes_spilled)
    return registers, shared, spilled, time.process_time() + os.times().children_user - begin, code


@cache
def dumped(path, option):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    found = subprocess.run([tool, option, path], check=True, capture_output=True, text=True)
    return found.stdout + found.stderr


@pytest.mark.parametrize(("op", "line"), LINES)
def test_kernels_stay_within_their_budget(op, line, monkeypatch, tmp_path_factory):
    budget = module_of(op).BUDGET[line]
    assert budget.keys() & TARGETS.keys()
    folder, wrong = tmp_path_factory.mktemp("cubin"), []
    for target in (t for t in TARGETS if t in budget):
        found = []
        for kernel, args, options in launches(monkeypatch, op, line, target):
            signature, constants, attributes = specialised(kernel, args)
            hashable = tuple(signature.items()), tuple(constants.items())
            aligned = tuple((at, tuple(map(tuple, what))) for at, what in attributes.items())
            asked = tuple(options.items()), target
            found.append((kernel.__name__, used(kernel, *hashable, aligned, *asked, folder)))
        assert found, f"{line} launches nothing"
        registers, shared, spilled = (max(numbers[i] for _, numbers in found) for i in range(3))
        if os.environ.get("HEXAD_SHOW_BUDGETS"):
            for name, (*numbers, seconds, _) in found:
                print(f"\n{op} {line} {target} {name}: registers, shared, spilled {numbers}, {seconds:.2f} s", end="")
        if spilled:
            wrong.append(f"{target}: {spilled} bytes of stack, spills or scratch")
        most = budget[target]
        if triton.__version__.startswith(MEASURED_WITH) and (registers > most[0] or shared > most[1]):
            wrong.append(f"{target}: {registers} registers and {shared} bytes shared, budget {most}")
        matrix = budget.get("matrix")
        wanted = WIDE[target] if matrix is True else NARROW.get(target, WIDE[target])
        largest_first = sorted((numbers for _, numbers in found), key=itemgetter(0), reverse=True)
        if matrix and not any(re.search(wanted, code()) for *_, code in largest_first):
            wrong.append(f"{target}: no {wanted} in the machine code")
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("op", OPS_HERE)
def test_every_kernel_has_a_budget(op, monkeypatch):
    module = module_of(op)
    here = {name for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
    mine = {name for name in here if name.endswith("_kernel") and getattr(module, name).__module__ == module.__name__}
    launched = {
        k.__name__ for line in getattr(module, "BUDGET", {}) for k, _, _ in launches(monkeypatch, op, line, "sm_90")
    }
    assert mine <= launched and launched, f"no line of BUDGET launches {mine - launched}"


def test_a_kernel_that_spills_is_found(monkeypatch, tmp_path):
    """The inverse test: too few registers for it."""
    kernel, args, _ = launches(monkeypatch, "coupling", next(iter(module_of("coupling").BUDGET)), "sm_90")[0]
    signature, constants, _ = specialised(kernel, args)
    given = tuple(signature.items()), tuple(constants.items()), ()
    assert used(kernel, *given, (), "sm_90", tmp_path)[2] == 0
    assert used(kernel, *given, (("maxnreg", 24),), "sm_90", tmp_path)[2] > 0

"""What nvcc made of each CUDA source, for each chip: its kernels keep their budget, nothing spills, and the instruction
that the design rests on is there.

Budgets stand beside the sources, csrc/cuda/<file>.budget.json: per chip the most registers and bytes of static shared
memory of any kernel of the file, "dynamic" the most that a launch asks for, and "instruction", one for both chips or
per chip. The objects are those of the build; with --op NAME and a build without CUDA, nvcc compiles NAME.cu here. For
sm_100a, where a plain kernel has a budget for it, ptxas translates the build's intermediate code, as a driver would.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from hexad_kernels import native

ROOT = Path(__file__).parents[1]
# attention.cu and attention_varlen.cu only choose among other files' kernels.
SOURCES = sorted(
    path.stem
    for path in (ROOT / "csrc/cuda").glob("*.cu")
    if path.with_suffix(".budget.json").exists() or "__global__" in path.read_text()
)
OBJECTS = ROOT / "build/native/CMakeFiles/hexad.dir/csrc/cuda"
BUILT_FOR = ("sm_80", "sm_90a")
SHARED_OF_CHIP = {"sm_80": 163 << 10, "sm_90a": 227 << 10, "sm_100a": 227 << 10}  # what a block may have
# For a source that has no budget yet: three blocks of 128 threads on an SM.
USUAL = {chip: {"registers": 168, "shared": 48 << 10} for chip in BUILT_FOR}
SPEC = re.compile(r"(REG|STACK|SHARED|LOCAL):(\d+)")


def budget(name):
    path = ROOT / f"csrc/cuda/{name}.budget.json"
    return json.loads(path.read_text()) if path.exists() else USUAL


def cuobjdump():
    """Triton's wheel brings one; a CUDA toolkit may."""
    triton = find_spec("triton")
    wheel = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    return str(wheel) if wheel and wheel.exists() else shutil.which("cuobjdump")


@pytest.fixture
def binary(name, arch, request, tmp_path_factory):
    """A file with the machine code of a source for a chip."""
    if arch not in budget(name):
        pytest.skip(f"{name} has no kernels for {arch}")
    if not cuobjdump():
        pytest.skip("no cuobjdump")
    if native.C is not None and not native.C.cuda_missing() and (OBJECTS / f"{name}.cu.o").exists():
        built = OBJECTS / f"{name}.cu.o"
        return built if arch in BUILT_FOR else translated(built, arch, tmp_path_factory.mktemp(name))
    if request.config.getoption("--op") != name or not shutil.which("nvcc"):
        pytest.skip("this build has no CUDA kernels")
    return compiled(name, arch, tmp_path_factory.getbasetemp())


def translated(built, arch, folder):
    subprocess.run([cuobjdump(), "-xptx", "all", built], check=True, cwd=folder, capture_output=True)
    found = [path for path in folder.glob("*.ptx") if ".version" in path.read_text()]
    if not found or not shutil.which("ptxas"):
        pytest.skip("no intermediate code in this build" if not found else "no ptxas")
    made = folder / f"kernels.{arch}.cubin"
    subprocess.run(["ptxas", f"-arch={arch}", "-O3", found[0], "-o", made], check=True)
    return made


@cache
def compiled(name, arch, folder):
    made = folder / f"{name}.{arch}.cubin"
    flags = ["-std=c++17", "-O3", f"-arch={arch}", "-cubin", f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include"]
    subprocess.run(["nvcc", *flags, ROOT / f"csrc/cuda/{name}.cu", "-o", made], check=True)
    return made


def dumped(path, *options):
    return subprocess.run([cuobjdump(), *options, path], check=True, capture_output=True, text=True).stdout


def kernels(text):
    """kernel -> its registers, stack, shared and local memory."""
    pairs = re.findall(r"Function (\S+):\s*\n([^\n]*REG:[^\n]*)", text)
    return {name: {key: int(n) for key, n in SPEC.findall(line)} for name, line in pairs}


def over_budget(found, allowed, chip):
    """What a kernel uses beyond its budget, in words."""
    said = []
    for name, used in found.items():
        if used["STACK"] or used["LOCAL"]:
            said.append(f"{name} spills: {used}")
        if used["REG"] > allowed["registers"] or used["SHARED"] > allowed["shared"]:
            said.append(f"{name} uses {used}, its budget is {allowed}")
    if allowed["shared"] + allowed.get("dynamic", 0) > SHARED_OF_CHIP[chip]:
        said.append(f"the budget's shared memory is more than {chip} has")
    return said


def uses(instruction, path, arch, found):
    """Whether a kernel has the instruction. Disassembly is slow: the largest of each template is asked first."""
    largest = {}
    for name in sorted(found, key=lambda name: found[name]["REG"]):
        largest[re.sub(r"I.*", "", name)] = name
    some = "-fun", ",".join(largest.values())
    return any(instruction in dumped(path, *arch, "-sass", *chosen) for chosen in (some, ()))


@pytest.mark.parametrize("arch", SHARED_OF_CHIP)
@pytest.mark.parametrize("name", SOURCES)
def test_keeps_its_budget(name, arch, binary):
    """And has the instruction that the design rests on."""
    chosen = () if binary.suffix == ".cubin" else ("-arch", arch)  # an object has several chips
    found = kernels(dumped(binary, *chosen, "-res-usage"))
    assert found, f"no kernel of {name}.cu for {arch}"
    print(f"{arch} {name}: {max(used['REG'] for used in found.values())} registers at most")
    assert not over_budget(found, budget(name)[arch], arch)
    wanted = budget(name).get("instruction")
    wanted = wanted.get(arch) if isinstance(wanted, dict) else wanted
    assert wanted is None or uses(wanted, binary, chosen, found), f"{name}.cu: no {wanted} for {arch}"


def test_budgets_belong_to_sources():
    for path in (ROOT / "csrc/cuda").glob("*.budget.json"):
        name = path.name.removesuffix(".budget.json")
        assert name in SOURCES, f"{path.name}: there is no {name}.cu"
        assert set(budget(name)) <= {*SHARED_OF_CHIP, "instruction"}
        for arch in set(budget(name)) - {"instruction"}:
            assert {"registers", "shared"} <= set(budget(name)[arch]) <= {"registers", "shared", "dynamic"}


@pytest.mark.parametrize(
    "worse", [{"REG": 65}, {"SHARED": 1025}, {"STACK": 8}, {"LOCAL": 16}, {}], ids=lambda w: "".join(w) or "none"
)
def test_a_regression_is_seen(worse):
    text = "Fatbin\narch = sm_90a\n Function kernel:\n  REG:64 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:640 TEXTURE:0\n"
    for key, value in worse.items():
        text = re.sub(rf"{key}:\d+", f"{key}:{value}", text)
    assert bool(over_budget(kernels(text), {"registers": 64, "shared": 1024}, "sm_90a")) == bool(worse)
    assert over_budget({}, {"registers": 64, "shared": 1024, "dynamic": 240 << 10}, "sm_90a")

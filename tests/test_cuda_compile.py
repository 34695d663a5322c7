"""What nvcc made of the CUDA kernels, read from the library: each op is there for each chip, and nothing spills."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from hexad_kernels import native

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("sm_80", "sm_90a")
OPS = re.findall(r"OP\((\w+),", (ROOT / "csrc/cuda/ops.def").read_text())
REGISTERS = 168  # 3 blocks of 128 threads on an SM
STATIC_SHARED = 48 << 10


def cuobjdump():
    """Triton's wheel brings one; a CUDA toolkit may."""
    triton = find_spec("triton")
    wheel = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    return str(wheel) if wheel and wheel.exists() else shutil.which("cuobjdump")


@pytest.fixture(scope="module")
def kernels():
    """(architecture, kernel) -> its registers, stack, shared and local memory."""
    if native.C is None or native.C.cuda_missing():
        pytest.skip("this build has no CUDA kernels")
    if not cuobjdump():
        pytest.skip("no cuobjdump")
    library = Path(native.C.__file__).parent / "lib" / "libhexad.so"
    text = subprocess.run([cuobjdump(), "-res-usage", library], check=True, capture_output=True, text=True).stdout
    found, arch = {}, ""
    for line in text.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function (.+):$", line):
            function = match[1]
        elif "REG:" in line:
            found[arch, function] = {key: int(n) for key, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)}
    return found


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_keeps_its_budget(kernels, op, arch):
    own = {name: used for (chip, name), used in kernels.items() if chip == arch and f"{op}_kernel" in name}
    assert own, f"no {op} kernel for {arch}"
    for name, used in own.items():
        print(f"{arch} {name}: {used}")
        assert used["STACK"] == used["LOCAL"] == 0, f"{name} spills: {used}"
        assert used["REG"] <= REGISTERS and used["SHARED"] <= STATIC_SHARED, f"{name}: {used}"

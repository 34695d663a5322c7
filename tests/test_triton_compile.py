"""Every Triton kernel compiles for the chips we serve, from a machine without one: no spills, and the matrix
instruction where there must be one. Kernels are taken as run() launches them for a case, warps and stages included."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from hexad_kernels.op import OPS
from tests import promises
from tests.cases import build, cases

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
MATRIX_INSTRUCTION = {80: "mma.sync", 90: "wgmma"}
WITH_MATRIX_INSTRUCTION = {("attention", torch.bfloat16)}
KERNELS = [
    (name, case, dtype)
    for name, found in cases().items()
    if (Path(__file__).parents[1] / f"kernels/hexad_kernels/triton/{name}.py").exists()
    for case in found
    if case.small and case.batch
    for dtype in case.dtypes
]


def label(value):
    return getattr(value, "name", None) or str(value).removeprefix("torch.")


def launches(monkeypatch, name, case, dtype):
    """What run() would launch: (kernel, args, options)."""
    module = import_module(f"hexad_kernels.triton.{name}")
    made = []
    monkeypatch.setattr(module, "launch", lambda kernel, grid, device, *args, **kw: made.append((kernel, args, kw)))
    arguments = promises.flat_arguments(name, build(case, dtype))
    module.run(OPS[name].contract(*arguments), *arguments)
    return made


def compiled(kernel, args, options, arch):
    """The kernel specialised as a launch would: 1 and None are constants, multiples of 16 are known as such."""
    signature, constants, attributes = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(i,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(cubin, folder):
    """Registers, stack and local memory of a cubin's kernel."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    return {key: int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL")}


@pytest.mark.skipif(sys.platform != "linux", reason="triton's tools are for Linux")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("name", "case", "dtype"), KERNELS, ids=label)
def test_compiles_without_spills(name, case, dtype, arch, monkeypatch, tmp_path):
    made = launches(monkeypatch, name, case, dtype)
    assert made
    for kernel, args, options in made:
        binary = compiled(kernel, args, options, arch)
        used = resources(binary.asm["cubin"], tmp_path)
        print(f"{name} {case.name} {dtype} sm_{arch}: {used}, shared {binary.metadata.shared}")
        assert used["STACK"] == used["LOCAL"] == 0, f"spills: {used}"
        assert used["REG"] <= 255
    if (name, dtype) in WITH_MATRIX_INSTRUCTION:
        assert MATRIX_INSTRUCTION[arch] in binary.asm["ptx"]

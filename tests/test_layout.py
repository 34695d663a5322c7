"""The house: one op, one name, the file stem in every room; arrows point down; nothing shadows other packages."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {
    "csrc/api": "*.cpp",
    "csrc/cpu": "*.cpp",
    "csrc/cuda": "*.cu",
    "csrc/op": "*.h",
    "kernels/hexad_kernels/triton": "*.py",
    "tests/cases": "*.py",
}
MACHINERY = {"common", "isa", "parallel", "table", "missing", "present", "ops", "roofline", "__init__"}


def ops():
    return {p.stem for p in (ROOT / "tests/cases").glob("*.py")} - MACHINERY


# Several kernels of one op: by chip (plain: any), by type.
VARIANT = re.compile(r"^(sm\d+|plain)_|_(bf16|f16)$")


def test_one_op_one_name():
    for room, pattern in ROOMS.items():
        stems = {VARIANT.sub("", p.stem).removesuffix("_backward") for p in (ROOT / room).glob(pattern)} - MACHINERY
        assert stems <= ops(), f"{room}: {stems - ops()} are no ops"
    for op in ops():
        assert (ROOT / f"kernels/hexad_kernels/{op}.py").exists() or op in SHARED, f"{op} has no contract and reference"


# Ops that live in the file of the op whose kernel they share.
SHARED: set[str] = set()


def test_source_roots_shadow_nothing():
    for root in ("engine", "kernels"):
        assert not (ROOT / root / "__init__.py").exists(), f"{root}/ must stay a plain source root"


def test_arrows_point_down():
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not re.search(r"^\s*(import hexad\b|from hexad[. ])", path.read_text(), re.M), path
    for path in [*(ROOT / "csrc").rglob("*.*")]:
        assert not re.search(r"#include [<\"](torch|ATen|c10|Python\.h|pybind11)", path.read_text()), path


def test_files_stay_small():
    sources = [p for d in ("engine", "kernels", "csrc", "bindings", "tests", "bench") for p in (ROOT / d).rglob("*")]
    long = [
        p for p in sources if p.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"} and len(p.read_text().split("\n")) > 500
    ]
    assert not long

"""hexad inside other programs: a C program against find_package(hexad), and beside the packages it must not shadow."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

import hexad_kernels

ROOT = Path(__file__).parent.parent

PROGRAM = r"""
#include <hexad/hexad.h>
#include <stdio.h>

int main(void) {
  float x[4] = {1, 2, 3, 4}, t[2] = {10, 20}, y[4], log_det[1];
  int64_t full[2] = {1, 4}, half[2] = {1, 2}, one[1] = {1};
  hexad_tensor tx = {x, HEXAD_CPU, 0, 2, 2, 32, 1, full, NULL, 0};
  hexad_tensor tt = {t, HEXAD_CPU, 0, 2, 2, 32, 1, half, NULL, 0};
  hexad_tensor ty = {y, HEXAD_CPU, 0, 2, 2, 32, 1, full, NULL, 0};
  hexad_tensor tl = {log_det, HEXAD_CPU, 0, 1, 2, 32, 1, one, NULL, 0};
  if (hexad_abi_version() != HEXAD_ABI_VERSION) return 2;
  if (hexad_coupling(&tx, &tt, NULL, &ty, &tl, NULL, NULL, 0, 0, 0, 0, 1.0f, NULL) != HEXAD_OK) {
    fprintf(stderr, "%s\n", hexad_last_error());
    return 1;
  }
  printf("%g %g %g %g\n", y[0], y[1], y[2], y[3]);
  if (hexad_coupling(&tx, &tx, NULL, &ty, &tl, NULL, NULL, 0, 0, 0, 0, 1.0f, NULL) != HEXAD_INVALID) return 3;
  printf("%s\n", hexad_last_error());
  return 0;
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(embed C)
find_package(hexad 0.1 REQUIRED)
add_executable(embed main.c)
target_link_libraries(embed PRIVATE hexad::hexad)
"""


def test_c_program_against_the_installed_package(tmp_path):
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    assert cmake, "cmake is missing: pip install cmake"
    (tmp_path / "main.c").write_text(PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    build = tmp_path / "build"
    configure = [cmake, "-S", tmp_path, "-B", build, f"-DCMAKE_PREFIX_PATH={hexad_kernels.cmake_prefix()}"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run([cmake, "--build", build], check=True, capture_output=True)
    run = subprocess.run([build / "embed"], check=True, capture_output=True, text=True)
    assert run.stdout.splitlines() == ["1 2 13 24", "shift: dimension 1 is 4, wants 2"]


@pytest.mark.parametrize(
    "code", ["import transformers, diffusers, kernels, hexad, hexad_kernels; print(kernels.__file__)"]
)
def test_nothing_is_shadowed_from_the_repository_root(code):
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert str(ROOT / "kernels") not in run.stdout


def test_installing_brings_two_packages_and_no_more():
    found = {name.partition(".")[0] for root in ("engine", "kernels") for name in find_packages(ROOT / root)}
    assert found == {"hexad", "hexad_kernels"}

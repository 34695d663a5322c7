"""hexad from C++: the header-only convenience, a program that generates without Python, symbols, sanitizers."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hexad_kernels as hk
from hexad import checkpoint, models
from hexad.sampling.decode import continuations
from hexad.tasks import realnvp

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "engine/hexad/checkpoints"
PREFIX = hk.cmake_prefix()
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]


def tool(name):
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    assert found, f"{name} is missing"
    return found


def run(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)


def succeeds(*command, **options):
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def generate(tmp_path_factory):
    """The example, built through find_package as its page says."""
    build = tmp_path_factory.mktemp("generate")
    succeeds(tool("cmake"), "-S", ROOT / "examples/cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={PREFIX}")
    succeeds(tool("cmake"), "--build", build)
    return build / "generate"


def compiled(folder, source, *flags):
    path = folder / "program"
    (folder / "program.cpp").write_text(source)
    library = PREFIX / "lib"
    include = f"-I{PREFIX / 'include'}"
    link = [f"-L{library}", "-lhexad", f"-Wl,-rpath,{library}"]
    succeeds(
        "g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", include, folder / "program.cpp", "-o", path, *flags, *link
    )
    return path


def test_the_page_and_its_example_are_one_and_run(generate):
    example = (ROOT / "examples/cpp/first.cpp").read_text()
    assert f"```cpp\n{example}```" in (ROOT / "docs/native.md").read_text()
    value, refused = succeeds(generate.parent / "first").splitlines()
    assert float(value.rpartition(" ")[2]) < 1e-6
    assert refused.startswith("refused: cos: ")


def test_text_is_the_engines(generate):
    """Token by token over a cache in C++, a whole prompt at once in Python: the same text."""
    model = models.gpt.GPT(models.gpt.Config()).eval()
    checkpoint.load(model, "gpt")
    for prompt, temperature, seed in (("The with statement", 0.0, 0), ("  a_b 12!\n\n  def f(x):", 0.8, 5)):
        tokens = model.vocabulary.encode(prompt)
        ((want,)) = continuations(model, [tokens], seeds=[seed], length=30, temperature=temperature)
        got = run(generate, "gpt", WEIGHTS / "gpt.safetensors", prompt, 30, temperature, seed)
        assert got.stdout == model.vocabulary.decode(want) + "\n", got.stderr


def test_images_are_the_engines(generate, tmp_path):
    flow = realnvp.build().eval()
    checkpoint.load(flow, "realnvp")
    succeeds(generate, "realnvp", WEIGHTS / "realnvp.safetensors", 5, tmp_path / "out.pgm", 3)
    content = (tmp_path / "out.pgm").read_bytes()
    assert content.startswith(b"P5\n40 8\n255\n")
    got = torch.tensor(list(content[-320:])).view(8, 5, 8).transpose(0, 1)
    want = realnvp.generate(flow, n=5, seed=3) * 255
    assert (got - want).abs().max() <= 0.51


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


DAMAGED = {
    "has no header": b"abc",
    "header longer than the file": struct.pack("<Q", 2**63) + b"{}",
    "wants '{'": safetensors(b"[]"),
    "wants ':'": safetensors(b'{"a"}'),
    "escaped": safetensors(b'{"a\\u0041":1}'),
    "is there twice": safetensors(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b"\0" * 8,
    ),
    "offsets that are not its size": safetensors({"a": tensor(0, 4)}, b"\0" * 4),
    "larger than memory": safetensors({"a": tensor(0, 8, (2**40, 2**40))}, b"\0" * 8),
    "number that is too large": safetensors(b'{"a":{"dtype":"F32","shape":[99999999999999999999]}}'),
    "past the end": safetensors({"a": tensor(0, 8)}, b"\0" * 4),
    "gap or an overlap": safetensors({"a": tensor(4, 12)}, b"\0" * 12),
    "overlaps|gap or an overlap": safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12),
    "belong to no tensor": safetensors({"a": tensor(0, 8)}, b"\0" * 12),
    "unknown dtype": safetensors({"a": tensor(0, 8, dtype="Q7")}, b"\0" * 8),
    "behind its header": safetensors(b"{} x"),
    "has no tensor": safetensors({"a": tensor(0, 8)}, b"\0" * 8),
}


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_weights_are_refused_with_the_reason(generate, text, tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(DAMAGED[text])
    done = run(generate, "realnvp", path, 1, tmp_path / "out.pgm")
    assert done.returncode == 1 and re.search(text, done.stderr), done.stderr
    assert not (tmp_path / "out.pgm").exists()


def test_weights_that_are_not_finite_are_refused(generate, tmp_path):
    content = bytearray((WEIGHTS / "realnvp.safetensors").read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    (tmp_path / "nan.safetensors").write_bytes(content)
    done = run(generate, "realnvp", tmp_path / "nan.safetensors", 1, tmp_path / "out.pgm")
    assert done.returncode == 1 and "not finite" in done.stderr


PROGRAM = r"""
#include <cstdio>
#include <hexad/hexad.hpp>
#include <vector>

int main() {
  hexad::require_abi();
  std::vector<float> x = {1, 2, 3, 4}, shift = {10, 20}, y(4), log_det(1);
  const auto in = hexad::view(x, {1, 4});
  hexad::call(hexad_coupling, in, hexad::view(shift, {1, 2}), nullptr, hexad::view(y, {1, 4}),
              hexad::view(log_det, {1}), nullptr, nullptr, 0, 0, 0, 0, 1.0f);
  std::printf("%g %g %g %g\n", y[0], y[1], y[2], y[3]);
  try {
    hexad::call(hexad_coupling, in, in, nullptr, hexad::view(y, {1, 4}), hexad::view(log_det, {1}),
                nullptr, nullptr, 0, 0, 0, 0, 1.0f);
  } catch (const hexad::Error& error) {
    std::printf("%d %s\n", int(error.status()), error.what());
  }
  try {
    hexad::view(x, {2, 4});
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
  }
  std::vector<hexad::bfloat16> half(4, {0x3f80}), wide(4);
  const hexad::View<const hexad::bfloat16> read = hexad::view(half, {2, 2});  // strided: the transpose
  hexad::call(hexad_linear, read, hexad::View<const hexad::bfloat16>(half.data(), {2, 2}), nullptr, nullptr,
              hexad::view(wide, {2, 2}), 0);
  std::printf("%x\n", wide[3].bits);
}
"""
PRINTED = [
    "1 2 13 24",
    "1 shift: dimension 1 is 4, wants 2",
    "hexad::view: the shape has more elements than the memory",
    "4000",
]


def test_views_calls_and_errors(tmp_path):
    assert succeeds(compiled(tmp_path, PROGRAM)).splitlines() == PRINTED


def test_an_output_of_const_elements_does_not_compile(tmp_path):
    source = PROGRAM.replace(
        "x = {1, 2, 3, 4}, shift = {10, 20}, y(4)",
        "x = {1, 2, 3, 4}, shift = {10, 20}; const std::vector<float> y(4); std::vector<float> z(4)",
    )
    with pytest.raises(AssertionError, match="an output: its elements must not be const"):
        compiled(tmp_path, source)


OTHER_VERSION = r"""
#include <cstdio>
#include <hexad/hexad.hpp>
#include <vector>

extern "C" int hexad_abi_version(void) { return 99; }
int main() {
  try {
    std::vector<float> x(1);
    hexad::call(hexad_randn, nullptr, hexad::view(x, {1}), 0);
  } catch (const hexad::Error& error) {
    std::puts(error.what());
  }
}
"""


def test_another_abi_version_is_an_error(tmp_path):
    """A library of another version in the process, as a stand-in that only says so."""
    text = succeeds(compiled(tmp_path, OTHER_VERSION))
    assert text == "libhexad has ABI version 99, this program was built for 1\n"


def test_the_library_shows_the_documented_symbols_and_no_others():
    (library,) = (PREFIX / "lib").glob("libhexad.so")
    listed = succeeds("nm", "-D", "--defined-only", library).split()
    shown = {name for name in listed[2::3] if not name.startswith(("_init", "_fini"))}
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/include/hexad/hexad.h").read_text(), flags=re.S)
    documented = set(re.findall(r"HEXAD_API[\w\s\*]*?\b(hexad_\w+)\(", header))
    assert len(documented) > 20
    assert shown == documented


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    """libhexad itself under AddressSanitizer and UndefinedBehaviorSanitizer, and the example linked to it."""
    if os.environ.get("HEXAD_SANITIZE") != "1":
        pytest.skip("HEXAD_SANITIZE=1 builds the library and the example under ASan and UBSan, for minutes")
    build = tmp_path_factory.mktemp("sanitized")
    flags = " ".join(SANITIZED)
    options = [
        "-DHEXAD_PYTHON=OFF",
        "-DHEXAD_CUDA=OFF",
        "-DHEXAD_LEVELS=avx2",
        "-DCMAKE_BUILD_TYPE=None",
        f"-DCMAKE_CXX_FLAGS=-O0 {flags}",
    ]
    succeeds(tool("cmake"), "-S", ROOT, "-B", build / "lib", "-G", "Ninja", *options)
    succeeds(tool("cmake"), "--build", build / "lib")
    succeeds(tool("cmake"), "--install", build / "lib", "--prefix", build / "prefix")
    return build / "prefix"


def test_the_example_is_clean_under_sanitizers(generate, sanitized, tmp_path):
    library = sanitized / "lib"
    program = tmp_path / "generate"
    link = [f"-L{library}", "-lhexad", f"-Wl,-rpath,{library}"]
    source = ROOT / "examples/cpp/generate.cpp"
    succeeds("g++", "-std=c++17", "-O1", *SANITIZED, f"-I{sanitized / 'include'}", source, "-o", program, *link)
    given = ["gpt", WEIGHTS / "gpt.safetensors", "The with statement", 12]
    assert succeeds(program, *given) == succeeds(generate, *given)
    succeeds(program, "realnvp", WEIGHTS / "realnvp.safetensors", 2, tmp_path / "out.pgm")
    for i, content in enumerate(DAMAGED.values()):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(content)
        done = run(program, "realnvp", path, 1, tmp_path / "none.pgm")
        assert done.returncode == 1 and "runtime error" not in done.stderr and "Sanitizer" not in done.stderr
    (tmp_path / "views").mkdir()
    (tmp_path / "views/program.cpp").write_text(PROGRAM)
    views = tmp_path / "views/program"
    include = f"-I{sanitized / 'include'}"
    succeeds("g++", "-std=c++17", *SANITIZED, include, tmp_path / "views/program.cpp", "-o", views, *link)
    assert succeeds(views).splitlines() == PRINTED

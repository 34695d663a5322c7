"""Builds the native library and its Python module with CMake and ninja; everything else is in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures, builds and installs libhexad and _C into the package hexad_kernels."""

    def run(self) -> None:
        package = Path(self.get_ext_fullpath("hexad_kernels._C")).parent.resolve()
        build = Path(self.build_temp).resolve() if not self.inplace else ROOT / "build" / "native"
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        subprocess.run(["cmake", *configure], check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(package)], check=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.get_ext_fullpath("hexad_kernels._C")).parent
        installed = [
            *package.glob("_C*.so"),
            *(package / "lib").rglob("*"),
            *(package / "include").rglob("*"),
        ]
        return [str(path) for path in installed if path.is_file()]


setup(
    packages=find_packages("engine") + find_packages("kernels"),
    package_dir={"hexad": "engine/hexad", "hexad_kernels": "kernels/hexad_kernels"},
    package_data={"hexad": ["checkpoints/*", "py.typed"], "hexad_kernels": ["py.typed", "selection.json"]},
    ext_modules=[Extension("hexad_kernels._C", [])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
)

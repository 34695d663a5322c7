"""What importing costs and brings: no host, little time; every integration has an extra and a tested range."""

import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from hexad.integrations import host

ROOT = Path(__file__).parent.parent
HOSTS = (
    "transformers",
    "kernels",
    "diffusers",
    "normflows",
    "nflows",
    "FrEIA",
    "zuko",
    "jax",
    "cupy",
    "vllm",
    "sglang",
)
MARGIN = 3.0  # of a busy machine over a quiet one


def child(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.split()


def test_importing_is_quick():
    """Beyond torch, in CPU time: what else the machine does is not the import's."""
    limits = {"hexad_kernels": 0.3, "hexad": 0.5}
    code = "import time, torch; a = time.process_time()\n" + "\n".join(
        f"import {package}; print(time.process_time() - a)" for package in limits
    )
    child(code)  # the first run compiles bytecode
    for _ in range(3):
        taken = [float(seconds) for seconds in child(code)]
        late = [
            (*item, seconds) for item, seconds in zip(limits.items(), taken, strict=True) if seconds > MARGIN * item[1]
        ]
        if not late:
            return
    pytest.fail(
        "; ".join(f"import {p} takes {took:.2f} s beyond torch, wants {most} when quiet" for p, most, took in late)
    )


def test_importing_brings_no_host():
    code = f"import sys, hexad, hexad_kernels; print(*[m for m in {HOSTS!r} if m in sys.modules])"
    assert child(code) == []


def test_every_host_has_an_extra_and_a_page():
    project = (ROOT / "pyproject.toml").read_text()
    extras = project[project.index("[project.optional-dependencies]") : project.index("peers = [")]
    for name in HOSTS:
        assert re.search(rf'"{name}[-\w]*[><=]', extras), f"no extra for {name}"
        pages = [page for page in (ROOT / "docs").glob("*.md") if re.search(rf"\b{name}\b", page.read_text(), re.I)]
        assert pages, f"no page names {name}"


RANGES = {"FrEIA": "freia", "normflows": "normflows", "nflows": "nflows", "zuko": "zuko"}


@pytest.mark.parametrize("package", RANGES)
def test_another_version_warns_once_with_the_range(package, monkeypatch):
    pytest.importorskip(package, reason="needs it: pip install hexad[flows]")
    module = importlib.import_module(f"hexad.integrations.{RANGES[package]}")
    monkeypatch.setattr(host, "version", lambda name: "99.0")
    monkeypatch.setattr(host, "_warned", set())
    with pytest.warns(UserWarning, match=rf"tested with {package} >={module.LOWEST},<{module.BELOW}; this is 99\.0"):
        refused(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused(module)


def refused(module):
    with pytest.raises(TypeError):
        module.convert(object())

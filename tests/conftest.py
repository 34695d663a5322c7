import os

import pytest
from hypothesis import settings

# CI must not fail by the luck of the draw; at a desk new examples are welcome.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        default="cpu",
        help="the backend that the op tests run: cpu, cuda, triton, triton-interpreted, cuda-emulated",
    )


def pytest_configure(config):
    """What an interpreted or emulated backend needs must be there before hexad_kernels is imported."""
    backend = config.getoption("--backend")
    if backend == "triton-interpreted":
        os.environ["TRITON_INTERPRET"] = "1"
    if backend in ("cuda", "triton"):
        os.environ["HEXAD_TEST_DEVICE"] = "cuda"
    if backend == "cuda-emulated":
        from tests.cuda_emulator import build

        os.environ["HEXAD_CUDA_EMULATED"] = str(build("_C"))


@pytest.fixture(scope="session")
def backend_name(request):
    return request.config.getoption("--backend")


def pytest_collection_modifyitems(config, items):
    """A process that interprets or emulates runs only the tests made for it."""
    if config.getoption("--backend") == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return
    keep = [item for item in items if "backend_name" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in keep])
    items[:] = keep

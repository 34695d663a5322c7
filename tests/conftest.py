import os

import pytest

try:
    from hypothesis import settings
except ImportError:  # a bare machine with a GPU, which runs the op tests only
    settings = None

# The tests compile a handful of small graphs, each in a process that soon ends. Processes that compile and headers
# compiled ahead would cost more than they save, and hexad's own build has shown that the compiler knows the machine's
# instruction sets.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

# CI must not fail by the luck of the draw; at a desk new examples are welcome.
if settings is not None:
    settings.register_profile("ci", derandomize=True)
    if os.environ.get("CI"):
        settings.load_profile("ci")


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        default="cpu",
        help="the backend that the op tests run: cpu, cuda, triton, triton-interpreted, cuda-emulated",
    )
    parser.addoption("--op", help="run only the tests of this op's cases")
    parser.addoption("--small", action="store_true", help="run only the cases that are marked small")


def pytest_configure(config):
    """What an interpreted or emulated backend needs must be there before hexad_kernels is imported."""
    backend = config.getoption("--backend")
    if backend == "triton-interpreted":
        from tests import interpreter

        os.environ["TRITON_INTERPRET"] = "1"
        interpreter.quicken()
    if backend in ("cuda", "triton"):
        os.environ["HEXAD_TEST_DEVICE"] = "cuda"
    if backend == "cuda-emulated":
        from tests.cuda_emulator import build

        os.environ["HEXAD_CUDA_EMULATED"] = str(build("_C"))


@pytest.fixture(scope="session")
def backend_name(request):
    return request.config.getoption("--backend")


def _chosen(item, op, small):
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return (not op or params.get("name") == op) and (not small or getattr(params.get("case"), "small", False))


def _of_a_backend(config):
    """Whether this process interprets or emulates: it runs only the tests made for that, which ask for backend_name."""
    return config.getoption("--backend") != "cpu" or os.environ.get("TRITON_INTERPRET") == "1"


def pytest_ignore_collect(collection_path, config):
    """Importing every host only to deselect its tests would take longer than many an op's tests."""
    test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if test and _of_a_backend(config) and "backend_name" not in collection_path.read_text() else None


# These start first: at the end, what is left is short and the workers share it out.
LONGEST = {"test_triton_compile", "test_gpu_bench", "test_integration_examples", "test_torch", "test_cuda_compile"}


def pytest_collection_modifyitems(config, items):
    """--op and --small choose among the tests of a backend."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    op, small = config.getoption("--op"), config.getoption("--small")
    if op or small:
        chosen = [item for item in items if _chosen(item, op, small)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    if not _of_a_backend(config):
        return
    keep = [item for item in items if "backend_name" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in keep])
    items[:] = keep

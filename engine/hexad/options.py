"""Checks of what the user typed, made before anything is computed."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from . import checks
from .errors import HexadError, InputError
from .registry import Task

SAMPLES = 4096
# What can be known to be wrong before the model is loaded; the model knows the rest.
CHECKS: dict[str, Callable[[str, Any], object]] = {
    "class_": lambda option, value: checks.integer(option, value, 0, 9),
    "steps": lambda option, value: checks.integer(option, value, 1, 100_000),
    "length": lambda option, value: checks.integer(option, value, 1, 100_000),
    "top_k": lambda option, value: checks.integer(option, value, 0, 100_000),
    "top_p": checks.share,
    "guidance": checks.number,
    "temperature": checks.number,
    "prompt": checks.text,
}


def generation(name: str, task: Task, given: dict[str, Any]) -> dict[str, Any]:
    """The options of ``generate`` that were given, checked; InputError for one that the model lacks."""
    options = {option: value for option, value in given.items() if value is not None}
    for option in options:
        if option not in task.OPTIONS:
            known = " ".join(sorted("--" + o.rstrip("_").replace("_", "-") for o in task.OPTIONS)) or "no options"
            raise InputError(option, repr(options[option]), f"a model that has it; {name} understands {known}")
    for option, value in options.items():
        if option in CHECKS:
            CHECKS[option](option, value)
    return options


def output_file(path: Path, *, suffix: str) -> Path:
    """``path`` when a file of that suffix can be written there."""
    if path.is_dir() or path.suffix.lower() != suffix:
        raise InputError("--out", path, f"a {suffix} file")
    output_directory(path.parent)
    return path


def output_directory(path: Path) -> Path:
    """``path`` when it is, or can become, a folder to write in. Leaves nothing behind."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            return path
    except OSError as error:
        raise InputError("--out", path, f"a place to write ({existing}: {error.strerror})") from None


def kernels() -> ModuleType:
    """hexad_kernels, or HexadError where it is not built or HEXAD_BACKEND names no backend."""
    try:
        import hexad_kernels
    except (ImportError, ValueError) as error:
        raise HexadError(f"hexad_kernels cannot be imported: {error}") from error
    return hexad_kernels


@contextmanager
def user_errors(backend: str | None = None) -> Iterator[None]:
    """Force the backend, if one is given; what a contract or a backend refuses becomes the user's one line."""
    hexad_kernels = kernels()
    with ExitStack() as stack:
        try:
            if backend is not None:
                stack.enter_context(hexad_kernels.backend(backend))
        except ValueError as error:
            raise HexadError(f"--{error}") from error
        try:
            yield
        except (ValueError, hexad_kernels.BackendError) as error:
            raise error if isinstance(error, HexadError) else HexadError(str(error)) from error

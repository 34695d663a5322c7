"""hexad: one kernel engine for six families of generative models."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {"accelerate": "hexad.integrations.diffusers", "optimize": "hexad.integrations.optimize"}


def __getattr__(name: str) -> Any:
    """What needs torch or a host is imported when it is asked for."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""hexad: one kernel engine for six families of generative models."""

__version__ = "0.1.0"

from typing import Any

_LAZY = {"optimize": "hexad.integrations.optimize"}


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""hexad: one kernel engine for six families of generative models."""

from __future__ import annotations

from typing import TypeVar

__version__ = "0.1.0"

_Host = TypeVar("_Host")


def accelerate(pipe: _Host) -> _Host:
    """hexad's kernels in a pipeline, model or scheduler of diffusers; see `hexad.integrations.diffusers.accelerate`."""
    from hexad.integrations import diffusers

    return diffusers.accelerate(pipe)

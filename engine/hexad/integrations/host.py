"""What every integration asks of its host."""

from __future__ import annotations

import re
import warnings
from importlib.metadata import version

_warned: set[str] = set()


def check_version(host: str, lowest: str, below: str) -> None:
    """Warn, once a process, when the installed `host` lies outside lowest <= version < below.

    Raises importlib.metadata.PackageNotFoundError (an ImportError) when the host is not installed.
    """
    found = version(host)
    if host not in _warned and not _numbers(lowest) <= _numbers(found) < _numbers(below):
        _warned.add(host)
        warnings.warn(f"hexad was tested with {host} >={lowest},<{below}; this is {found}", stacklevel=3)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])

"""Which versions of a host an integration was tested with."""

from __future__ import annotations

import re
import warnings
from functools import cache
from importlib.metadata import version


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


@cache
def warn_if_untested(package: str, first: str, last: str) -> None:
    """One warning per process if the installed `package` is outside first .. last ("major.minor", both included)."""
    installed = version(package)
    if not _numbers(first) <= _numbers(installed) <= _numbers(last):
        warnings.warn(
            f"hexad: {package} {installed} is outside the tested range {first} to {last}; results may differ",
            stacklevel=3,
        )

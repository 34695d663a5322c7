"""The alternatives: the same work in other packages, a file each.

A peer's file has a function per hexad op with the op's own arguments. It prepares everything beforehand (graphs,
modules, layouts) and returns a call without arguments that gives torch tensors like the op's first output, or None
for arguments that the package cannot take. Importing the file imports the package.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("[a-zA-Z]*.py"))


def load(name: str) -> tuple[ModuleType | None, str]:
    """The peer, or None and why it is not here."""
    try:
        return import_module(f"bench.peers.{name}"), ""
    except ImportError as error:
        return None, f"{name} is not installed ({error})"

"""Writing files so that a reader never meets half of one, whatever kills the writer."""

import os
from collections.abc import Mapping
from pathlib import Path


def atomic_write(contents: Mapping[Path, bytes]) -> None:
    """Write every file, or none: all go to temporary files beside their targets first, then are renamed.

    An error or Ctrl-C part-way puts back what was there. Only a kill between two renames can leave a new file
    beside an old one; a checkpoint's manifest notices that.
    """
    staged: dict[Path, Path] = {}
    previous: dict[Path, bytes | None] = {}
    try:
        for target, content in contents.items():
            staged[target] = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            with open(staged[target], "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if len(contents) > 1:
            previous = {target: target.read_bytes() if target.exists() else None for target in contents}
        for target, temporary in staged.items():
            os.replace(temporary, target)
    except BaseException:
        for target, old in previous.items():
            if old is not None:
                target.write_bytes(old)
            else:
                target.unlink(missing_ok=True)
        raise
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)

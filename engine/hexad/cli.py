"""The door of the command line: runs a command and turns what goes wrong into one line and an exit code.

0 done; 1 a gate or a check failed; 2 bad input (one line on stderr, never a traceback); 130 Ctrl-C.
"""

import os
import sys
from collections.abc import Sequence

from .errors import HexadError, InputError

OPTION_OF = {"class_": "--class"} | {
    name: f"--{name}" for name in ("n", "seed", "steps", "guidance", "sampler", "prompt", "length")
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    try:
        sys.exit(_run(arguments))
    except KeyboardInterrupt as interrupt:
        _say(str(interrupt) or "interrupted; nothing half written")
        sys.exit(130)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        from .commands import app

        code = app(args=arguments, prog_name="hexad", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except InputError as error:
        _say(str(error).replace(error.argument, OPTION_OF.get(error.argument, error.argument), 1))
    except HexadError as error:
        _say(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # typer brings its own click or uses the installed one, so its errors are known by what they do.
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt(*getattr(error.__cause__, "args", ())) from error
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ != "NoArgsIsHelpError":
            _say(error.format_message())
    return 2


def _say(text: str) -> None:
    print("hexad: " + " ".join(text.split()), file=sys.stderr, flush=True)

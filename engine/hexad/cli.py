"""The door of the command line: runs a command and turns what goes wrong into one line and an exit code.

0 done; 1 a gate or a check failed; 2 bad input (one line on stderr, never a traceback); 130 Ctrl-C.
"""

import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from .errors import HexadError, InputError, Interrupted

NUMBERS = ("n", "seed", "steps", "length", "guidance", "temperature", "top", "top_k", "top_p")
OPTION_OF = {name: "--" + name.replace("_", "-") for name in (*NUMBERS, "sampler", "prompt")}
OPTION_OF |= {"class_": "--class", "model": "MODEL", "text": "TEXT"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal cannot show is no reason to fail
    typed = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(typed)
    except KeyboardInterrupt:
        code = 130
        _say("interrupted; nothing is half written")
    sys.exit(code)


def _run(typed: list[str]) -> int:
    try:
        from .commands import app

        code = app(args=typed, prog_name="hexad", standalone_mode=False)
        sys.stdout.flush()
    except Interrupted as error:
        _say(str(error))
        return 130
    except InputError as error:
        _say(str(error).replace(error.argument, OPTION_OF.get(error.argument, error.argument), 1))
        return 2
    except HexadError as error:
        _say(str(error))
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        _say(f"{error.filename}: {error.strerror}")
        return 2
    except Exception as error:
        # typer brings its own click or uses the installed one, so its errors are known by what they do.
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from error
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ != "NoArgsIsHelpError":
            _say(_usage(error, typed))
        return 2
    if code == 130:  # typer's word for Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _usage(error: Any, typed: list[str]) -> str:
    """A parser's complaint; one about an option's value says what the value was."""
    message: str = error.format_message()
    for option in getattr(getattr(error, "param", None), "opts", ()):
        for word, following in zip(typed, [*typed[1:], ""]):
            name, equals, value = word.partition("=")
            if name == option:
                return f"{option}: got {value if equals else following!r}. {message}"
    return message


def _say(text: str) -> None:
    print("hexad: " + " ".join(text.split()), file=sys.stderr, flush=True)

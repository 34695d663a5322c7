"""Errors that a user can cause. Each says what was wrong in one line, which is all the command line shows."""


class HexadError(Exception):
    """Base of every error that carries a message meant for the user."""


class InputError(HexadError, ValueError):
    """A value that cannot be used: names the argument, what it got and what it wants."""

    def __init__(self, argument: str, got: object, wants: str) -> None:
        super().__init__(f"{argument}: got {got}, wants {wants}")
        self.argument = argument


class CheckpointError(HexadError):
    """A checkpoint that cannot be trusted or does not fit: names the file and what is wrong with it."""


class Interrupted(HexadError):
    """Ctrl-C, with a word about how to go on."""

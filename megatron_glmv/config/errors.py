"""The error of a wrong option: raised before any process starts, printed as one line, ends the command with code 64."""

from __future__ import annotations


class ConfigError(ValueError):
    """An option has a value it can't have.

    `option` is its dotted name, `value` what was given, `message` what is wrong, `fix` what to give instead, and
    `legal` the (option, value) pairs that were tried and would be accepted, nearest first.
    """

    exit_code = 64

    def __init__(
        self,
        option: str,
        value: object,
        message: str,
        fix: str = "",
        legal: tuple[tuple[str, object], ...] = (),
    ) -> None:
        super().__init__(option, value, message, fix, legal)
        self.option = option
        self.value = value
        self.message = message
        self.fix = fix
        self.legal = legal

    def __str__(self) -> str:
        line = f"{self.option}={show(self.value)}: {self.message}"
        return f"{line}; {self.fix}" if self.fix else line


def show(value: object) -> str:
    """A value as one would type it on the command line: null, true, [1,2], text as it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(show(item) for item in value) + "]"
    return " ".join(str(value).split())

"""What a command's exit code says; job scripts decide by it whether to run again."""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    OK = 0
    CONFIG = 64
    DATA = 65
    HANG = 70
    REQUEUE = 75
    DIVERGED = 76
    CORRUPT = 77

    @property
    def meaning(self) -> str:
        """One line for a person."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.CONFIG: "an option is wrong; running again won't help",
    ExitCode.DATA: "too many samples could not be read, or the data set is damaged",
    ExitCode.HANG: "a rank made no progress for too long",
    ExitCode.REQUEUE: "stopped on request with a checkpoint saved; run again to continue",
    ExitCode.DIVERGED: "the loss or the gradients stayed out of bounds",
    ExitCode.CORRUPT: "no checkpoint passes its checksums",
}

_SEVERITY = tuple(
    int(code)
    for code in (
        ExitCode.OK,
        ExitCode.REQUEUE,
        ExitCode.CONFIG,
        ExitCode.DATA,
        ExitCode.HANG,
        ExitCode.DIVERGED,
        ExitCode.CORRUPT,
    )
)


def worst(codes: Iterable[int]) -> int:
    """The code of several runs together: a failure outranks "run again", and a code that is not ours outranks all."""
    return max(codes, key=lambda code: _SEVERITY.index(code) if code in _SEVERITY else len(_SEVERITY), default=0)


EXIT_FILE = "GLMV_EXIT_FILE"
"""Environment variable of a job's ranks: the file in which the first that ends for a reason says which."""


def say_exit_code(code: int, reason: str) -> None:
    """Leaves `code` for the job script. The first rank's word stands: those that follow died of its death. Nothing is
    written where no job script asked for it."""
    file = os.environ.get(EXIT_FILE)
    if not file:
        return
    own = Path(f"{file}.{os.uname().nodename}.{os.getpid()}")
    own.write_text(f"{code} {' '.join(reason.split())}\n", encoding="utf-8")
    try:
        os.link(own, file)
    except FileExistsError:
        pass
    finally:
        own.unlink()

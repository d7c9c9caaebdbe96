"""What a command's exit code says; job scripts decide by it whether to run again."""

from __future__ import annotations

from enum import IntEnum


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

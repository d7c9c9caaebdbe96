"""What came of a prompt. Imports nothing heavy, so that graders and reports can use it."""

from __future__ import annotations

from dataclasses import dataclass

STOP, LENGTH, FAILED = "stop", "length", "failed"


@dataclass(frozen=True)
class Completion:
    """One answer."""

    token_ids: tuple[int, ...]
    """Without the token that ended it."""
    text: str
    finish: str
    """stop: the model ended its turn; length: it reached the limit; failed: a medium could not be used."""
    error: str = ""

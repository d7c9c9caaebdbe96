"""The ledger of samples that could not be used: appended as they fail, read when a run is judged."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_glmv.data.errors import DataError

LEDGER = "quarantine.jsonl"
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Bad:
    """One failure: the sample, where it lies, why it failed and the decoder that was tried (or none)."""

    key: str
    shard: str
    reason: str
    decoder: str = "none"


class Quarantine:
    """Counts distinct failed samples against a budget, and appends each once to `directory/quarantine.jsonl`.

    A ledger that is already there is taken up, so that a resumed run does not list a sample twice or forget its count.
    One writer per file.
    """

    def __init__(self, directory: Path, budget: float, *, least: int = 100) -> None:
        """`budget` is the share of samples that may fail; it is judged once `least` samples were seen."""
        self.path = Path(directory) / LEDGER
        self.budget = budget
        self.least = least
        self.bad = {entry.key: entry for entry in read_ledger(self.path)}

    def add(self, key: str, shard: str, reason: str, decoder: str = "none") -> bool:
        """Record a failure, flushed to disk at once. False when this key is in the ledger already."""
        if key in self.bad:
            return False
        entry = self.bad[key] = Bad(key, shard, reason, decoder)
        with self.path.open("ab+") as file:
            _drop_cut_line(file)
            file.write(json.dumps(asdict(entry), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return True

    def check(self, seen: int) -> None:
        """Raises DataError when more than the budget of `seen` distinct samples failed."""
        allowed = self.budget * max(seen, self.least)
        if len(self.bad) > allowed:
            last = next(reversed(self.bad.values()))
            raise DataError(
                self.path,
                f"{len(self.bad)} of {seen} samples failed, data.quarantine_budget={self.budget} allows {allowed:.0f}; "
                f"the last: {last.key}: {last.reason}",
            )


def _drop_cut_line(file: BinaryIO) -> None:
    """A crash may have left half a line at the end; the next entry must not be glued to it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _LONGEST_LINE))
    tail = file.read()
    file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


def read_ledger(path: Path) -> list[Bad]:
    """Entries in order; a last line cut by a crash is passed over. Raises DataError on any other damage."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    found: list[Bad] = []
    for n, line in enumerate(lines[:-1]):
        try:
            found.append(Bad(**json.loads(line)))
        except (ValueError, TypeError) as e:
            raise DataError(path, f"line {n + 1} is damaged: {e}") from e
    return found

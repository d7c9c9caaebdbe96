"""How much memory a conversion may take, will take, and took.

What counts is anonymous memory, which nobody can take back from a process. Pages of files that were read or written
belong to the page cache, which the system gives up when others need it; they are reported apart.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

from megatron_glmv.config.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_EVERY = 0.02
"""Seconds between two looks; a buffer of 64 MiB lives about that long."""


def parse_size(text: str, option: str) -> int:
    """Bytes in `2GiB`, `5GB`, `500M`, `1048576`. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ConfigError(option, text, "is no size", "write it like 2GiB or 500MB")
    return size


def readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1024
    raise AssertionError


def anonymous() -> int:
    """Bytes of anonymous memory this process has now."""
    return _status("RssAnon")


def _status(field_name: str) -> int:
    text = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field_name}:\s+([0-9]+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


@dataclass
class Watch:
    """Looks at the memory of this process while it is entered."""

    peak: int = 0
    """Most anonymous memory seen, in bytes."""
    files: int = 0
    """Most memory mapped from files (libraries above all) seen."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak, self.files = max(self.peak, anonymous()), max(self.files, _status("RssFile"))
            if self._stop.wait(_EVERY):
                return


def plan_workers(workers: int | None, buffer: int, limit: int | None, cores: int) -> tuple[int, int]:
    """How many workers there will be, and the peak of anonymous memory to expect, in bytes.

    `buffer`: what one worker holds. Without `workers`, as many as cores and memory allow. Raises ConfigError if the
    limit does not even allow one, or not the number asked for.
    """
    base = anonymous() + RESERVE
    fitting = (limit - base) // buffer if limit else cores
    if fitting < 1 or ((workers or 1) > fitting and limit):
        need = base + (workers or 1) * buffer
        raise ConfigError(
            "--memory-limit", limit, f"{workers or 1} workers need {need} bytes", "raise it, or take fewer"
        )
    count = workers or max(1, min(cores, fitting))
    return count, base + count * buffer


RESERVE = 96 << 20
"""Bytes for what grows besides buffers: the index of the checkpoint, stacks and heaps of threads."""

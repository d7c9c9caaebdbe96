"""Progress in bytes: a bar with the time left on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time

from rich import progress as bars
from rich.console import Console

from megatron_glmv.checkpoint.hf.memory import readable

PLAIN_SECONDS = 10.0


class Progress:
    """Shows on stderr how much of `total` bytes is done while it is entered. Safe to advance from several threads."""

    def __init__(self, label: str) -> None:
        self.label, self.total, self.done = label, 0, 0
        self._lock, self._said, self._began, self._before = threading.Lock(), 0.0, 0.0, 0
        self._show: bars.Progress | None = None
        self._task: bars.TaskID | None = None

    def start(self, total: int, done: int = 0) -> None:
        """`done`: bytes that an earlier run has made."""
        self.total, self.done, self._before = total, done, done
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (
                bars.TextColumn("{task.description}"),
                bars.BarColumn(),
                bars.DownloadColumn(binary_units=True),
                bars.TransferSpeedColumn(),
                bars.TimeRemainingColumn(),
            )
            self._show = bars.Progress(*columns, console=console, transient=True)
            self._task = self._show.add_task(self.label, total=self.total, completed=self.done)
            self._show.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._show is not None:
            self._show.stop()
            self._show = None

    def advance(self, count: int) -> None:
        with self._lock:
            self.done += count
            if self._show is not None and self._task is not None:
                self._show.update(self._task, completed=self.done)
                return
            now = time.monotonic()
            if now - self._said >= PLAIN_SECONDS:
                self._said = now
                rate = (self.done - self._before) / (now - self._began)
                left = (self.total - self.done) / rate
                amount = f"{readable(self.done)} of {readable(self.total)}"
                print(f"{self.label}: {amount}, {readable(rate)}/s, {left:.0f} s left", file=sys.stderr, flush=True)

"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
PLAIN_SECONDS = 10.0
"""Least time between two plain lines: short work prints none."""


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Hand `items` on, showing how many of `total` are done on stderr."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            yield from bar.track(items, total=total, description=label)
        return
    said = time.monotonic()
    for n, item in enumerate(items, 1):
        yield item
        if time.monotonic() - said >= PLAIN_SECONDS:
            said = time.monotonic()
            print(f"{label}: {n} of {total}", file=sys.stderr, flush=True)

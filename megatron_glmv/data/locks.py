"""Taking turns between the processes of a run."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def turn(lock: Path) -> Iterator[None]:
    """One process at a time inside; the kernel lets go of the lock when its holder dies.

    On a file system without locks all go in at once: what is done inside must bear that. Raises OSError where the file
    cannot be made.
    """
    with lock.open("a") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

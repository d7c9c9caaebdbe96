"""Worker processes for work on files: spawned (never forked: DALI and torch have threads), gone with their parent."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def process_pool(workers: int) -> ProcessPoolExecutor:
    """A pool whose processes end within about a second of their parent, also of one that was killed."""
    return ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_live_with, initargs=(os.getpid(),)
    )


def _live_with(parent: int) -> None:
    """End this worker soon after its parent: the pool's queues do not tell it of a parent that was killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

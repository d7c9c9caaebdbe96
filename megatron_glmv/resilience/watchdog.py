"""A rank that makes no progress ends the run with the hang code, and says where it stood.

A peer that died closes its connections, and every rank sees that at once. One that hangs (a dead disk, a kernel that
waits for ever) stops all others in a collective that never returns: nothing raises, and the allocation burns until its
time limit. This thread is what notices. It cannot run while C code holds the interpreter's lock; gloo, NCCL and file
reads let go of it.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

from megatron_glmv.resilience.exit_codes import ExitCode, say_exit_code

FIRST = 3
"""Times the limit for everything up to the first beat of the second step: imports, kernels, first allocations."""


class Watchdog:
    """`beat(where)` at every sign of life; where nothing is heard for `seconds`, the process ends. 0 never does."""

    def __init__(self, seconds: float, rank: int, end: Callable[[int], None] = os._exit) -> None:
        self.seconds, self.rank, self._end = seconds, rank, end
        self.on_hang: Callable[[str], None] = lambda reason: None
        """Told the reason before the process ends."""
        self._where, self._at, self._factor = "start", time.monotonic(), float(FIRST)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        if self.seconds:
            self._thread.start()
        return self

    def beat(self, where: str) -> None:
        """Progress; `where` is what comes next, in words for a person."""
        self._where, self._at = where, time.monotonic()

    def settled(self) -> None:
        """The first step is done: from now on the limit is the limit."""
        self._factor = 1.0

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            silent = time.monotonic() - self._at
            if silent > self.seconds * self._factor:
                reason = f"rank {self.rank} made no progress for {silent:.0f} s at {self._where}"
                print(f"watchdog: {reason}; where its threads stand:", file=sys.stderr, flush=True)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                say_exit_code(ExitCode.HANG, reason)
                self.on_hang(reason)
                self._end(int(ExitCode.HANG))
                return

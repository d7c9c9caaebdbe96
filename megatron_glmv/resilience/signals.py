"""SIGUSR1 and SIGTERM become a flag that the loop asks for once a step: save, then leave with the requeue code.

Slurm signals every process of a job step. SIGUSR1 is therefore blocked as well as handled: processes started from here
inherit the block and outlive the notice, and what is pending counts as asked. The handler is for threads that were
there before the block.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

REQUESTS = (signal.SIGUSR1, signal.SIGTERM)


class StopRequest:
    """Set by a signal. Which rank got it does not matter: ranks agree in the step's own reduction."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self) -> StopRequest:
        """Only the main thread may; elsewhere (tests that run a stage in a thread) signals stay as they are."""
        if threading.current_thread() is threading.main_thread():
            for number in REQUESTS:
                signal.signal(number, self._set)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def __bool__(self) -> bool:
        if self.signal is None and signal.SIGUSR1 in signal.sigpending():
            self.signal = signal.SIGUSR1
        return self.signal is not None

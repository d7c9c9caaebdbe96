"""SIGUSR1 and SIGTERM become a flag that the loop asks for once a step: save, then leave with the requeue code."""

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
        return self

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def __bool__(self) -> bool:
        return self.signal is not None

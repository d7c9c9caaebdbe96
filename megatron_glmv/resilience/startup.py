"""Where the seconds before the first step go: startup.json in the run directory, read by tools/bench_startup.py."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

NAME = "startup.json"


class Startup:
    """Marks the ends of phases, in seconds since this process began (wall) and spent by it (CPU)."""

    def __init__(self) -> None:
        self.began = process_start()
        """Epoch seconds at which the process started, to 0.01 s."""
        self.marks: dict[str, tuple[float, float]] = {}

    def mark(self, phase: str) -> None:
        """`phase` is over; one that is marked again keeps its first end."""
        self.marks.setdefault(phase, (time.time() - self.began, time.process_time()))

    def write(self, run_dir: Path) -> None:
        """Of the newest attempt only."""
        (run_dir / NAME).write_text(json.dumps({"began": self.began, "marks": self.marks}) + "\n", encoding="utf-8")


def process_start() -> float:
    """Epoch seconds at which this process started (Linux: proc(5), field 22 of stat, in ticks since boot)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))

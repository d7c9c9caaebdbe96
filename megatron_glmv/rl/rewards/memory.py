"""Scores that an endpoint gave before, and whether it is worth asking at the moment. Safe to use from any thread."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

REST_AFTER, REST_SECONDS = 16, 30.0
"""After so many failures in a row nobody is asked for so long: an endpoint that is down must not stop the training."""


def key_of(*asked: Any) -> str:
    """Of a question in JSON values: all that the score depends on."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Memory:
    """Scores by key; with a path in a file, too, appended to one line a score."""

    def __init__(self, path: str = "") -> None:
        self._path = Path(path) if path else None
        self._lock = threading.Lock()
        self._scores = _load(self._path) if self._path else {}

    def get(self, key: str) -> float | None:
        with self._lock:
            return self._scores.get(key)

    def put(self, key: str, score: float) -> None:
        with self._lock:
            self._scores[key] = score
            if self._path:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "score": score}) + "\n")


class Rest:
    """Counts failures in a row, and says when to leave the endpoint alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures, self._until = 0, 0.0

    @property
    def on(self) -> bool:
        return time.monotonic() < self._until

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= REST_AFTER:
                self._failures, self._until = 0, time.monotonic() + REST_SECONDS

    def answered(self) -> None:
        with self._lock:
            self._failures = 0


def _load(path: Path) -> dict[str, float]:
    """Scores of earlier runs. A last line that was cut is left out."""
    scores: dict[str, float] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                scores[str(entry["key"])] = float(entry["score"])
            except (ValueError, KeyError, TypeError):
                continue
    return scores

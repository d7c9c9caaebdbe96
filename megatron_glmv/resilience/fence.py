"""One writer for a run directory: a token that only grows. An attempt that was taken for dead (its node hung, Slurm
started the job elsewhere) and comes back finds a newer token, and may write nothing any more.

Not a lock: nobody waits, the newest attempt always wins. Between looking at the token and renaming a checkpoint lies a
moment in which a newer attempt could start; that one would then find the older one's checkpoint, which is whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from megatron_glmv.resilience.exit_codes import ExitCode

NAME = "owner.json"


class SupersededError(RuntimeError):
    """A newer attempt owns the run directory."""

    exit_code: ClassVar[int] = ExitCode.CONFIG


class Fence:
    """Held by the rank that writes."""

    def __init__(self, run_dir: Path, token: int) -> None:
        self.path, self.token = run_dir / NAME, token

    @classmethod
    def acquire(cls, run_dir: Path) -> Fence:
        """Makes this attempt the owner."""
        with (run_dir / f".{NAME}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            token = int((_read(run_dir / NAME) or {}).get("token", 0)) + 1
            owner = {
                "token": token,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "job": os.environ.get("SLURM_JOB_ID"),
                "since": datetime.now(UTC).isoformat(timespec="milliseconds"),
            }
            new = run_dir / f".{NAME}.new"
            new.write_text(json.dumps(owner) + "\n", encoding="utf-8")
            new.replace(run_dir / NAME)
        return cls(run_dir, token)

    def check(self) -> None:
        """Raises SupersededError when a newer attempt has started."""
        owner = _read(self.path)
        if owner is None or owner["token"] != self.token:
            other = "nobody" if owner is None else f"process {owner['pid']} on {owner['host']} since {owner['since']}"
            raise SupersededError(f"{self.path.parent} belongs to {other}; this attempt stops and writes nothing more")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return owner

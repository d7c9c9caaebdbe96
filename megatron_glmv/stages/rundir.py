"""The run directory: who runs, since when, why it stopped. Files are those of docs/run_directory.md."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

from megatron_glmv.checkpoint.store import committed
from megatron_glmv.config.errors import ConfigError, show
from megatron_glmv.config.fingerprint import load_bearing
from megatron_glmv.config.load import to_yaml
from megatron_glmv.config.schema import Config
from megatron_glmv.data.types import Json


def resolve_run_dir(config: Config) -> Path:
    """`run_dir`, or runs/<experiment>/<timestamp> with runs/latest pointing to it. Created."""
    if config.run_dir:
        directory = Path(config.run_dir)
        directory.mkdir(parents=True, exist_ok=True)
        return directory.resolve()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    base = Path("runs", config.experiment)
    directory = base / stamp
    for attempt in range(1, 1000):  # members of a sweep may start within one second
        try:
            directory.mkdir(parents=True)
            break
        except FileExistsError:
            directory = base / f"{stamp}-{attempt}"
    latest, fresh = Path("runs", "latest"), Path("runs", f".latest-{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(directory.resolve().relative_to(Path("runs").resolve()))
    fresh.replace(latest)
    return directory.resolve()


def check_resume(config: Config, run_dir: Path) -> None:
    """Raises ConfigError where the run in `run_dir` has checkpoints and was configured to give other numbers."""
    before = run_dir / "config.yaml"
    if config.resume == "anyway" or not before.is_file() or not committed(run_dir / "checkpoints"):
        return
    if config.resume == "never":
        raise ConfigError("resume", "never", f"{run_dir} has checkpoints", "resume=auto, or another run_dir")
    old = _flat(yaml.safe_load(before.read_text(encoding="utf-8")))
    new = json.loads(json.dumps(load_bearing(config)))
    changed = [f"{key} was {show(old[key])}, is {show(new[key])}" for key in new if old.get(key, new[key]) != new[key]]
    if changed:
        raise ConfigError(
            "resume", "auto", f"{run_dir} was trained with other options ({'; '.join(changed)})", "set them back, take "
            "another run_dir (init_from=CKPT starts from its weights), or give resume=anyway",
        )  # fmt: skip


def _flat(tree: Json, prefix: str = "") -> Json:
    flat: Json = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Attempt:
    """One line of attempts.jsonl a start: written when it ends; a killed attempt leaves `attempt.json` for the next
    to find."""

    def __init__(self, run_dir: Path, config: Config, world: int, step_in: int) -> None:
        self.run_dir = run_dir
        self.ledger, self.open_file = run_dir / "attempts.jsonl", run_dir / "attempt.json"
        self._close_killed()
        self.record: Json = {"start": _now(), "world": world, "step_in": step_in}
        for name, variable in (("job", "SLURM_JOB_ID"), ("restart", "SLURM_RESTART_COUNT")):
            if variable in os.environ:
                self.record[name] = os.environ[variable]
        self._began = time.monotonic()
        self.open_file.write_text(json.dumps(self.record))
        (run_dir / "config.yaml").write_text(to_yaml(config))

    def _close_killed(self) -> None:
        if not self.open_file.exists():
            return
        try:
            record = json.loads(self.open_file.read_text())
        except json.JSONDecodeError:
            record = {"start": None}
        self._append(record | {"end": None, "reason": "killed without a word", "exit_code": None, "step_out": None})

    def _append(self, record: Json) -> None:
        with self.ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def end(self, reason: str, exit_code: int, step_out: int | None) -> None:
        seconds = round(time.monotonic() - self._began, 3)
        done = {"end": _now(), "seconds": seconds, "reason": reason, "exit_code": exit_code, "step_out": step_out}
        self._append(self.record | done)
        self.open_file.unlink(missing_ok=True)


def write_ranks(run_dir: Path, ranks: list[Json]) -> None:
    """ranks.json: host and pid by rank of the running attempt."""
    (run_dir / "ranks.json").write_text(json.dumps({str(i): rank for i, rank in enumerate(ranks)}, indent=1))


def this_rank() -> Json:
    return {"host": socket.gethostname(), "pid": os.getpid()}

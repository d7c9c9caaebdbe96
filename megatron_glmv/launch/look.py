"""How runs are doing, from what they left in their directories and from Slurm's queue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_glmv.data.types import Json
from megatron_glmv.launch.slurm import Queued, SlurmError, queue
from megatron_glmv.launch.submit import JOBS, SWEEP
from megatron_glmv.resilience.exit_codes import ExitCode

RECENT = 20
"""Steps that a rate is taken over."""
DONE, FAILED, STOPPED, RUNNING, WAITING, UNKNOWN = "DONE", "FAILED", "STOPPED", "RUNNING", "WAITING", "UNKNOWN"
CANCELLED = "CANCELLED"


@dataclass(frozen=True)
class RunState:
    """One run, in a line."""

    run_dir: Path
    job: str
    """Number in Slurm (12, or 12_3); empty where the run was not submitted."""
    state: str
    """DONE, FAILED, STOPPED (it can go on), CANCELLED (while Slurm remembers; it can go on), RUNNING, WAITING (in the
    queue), UNKNOWN (nothing left a word)."""
    nodes: str
    step: int
    steps: int
    """Of the whole run; 0 where its config is not there."""
    loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    attempts: int
    reason: str
    """Why it waits, or why its last attempt ended."""


def runs_of(path: Path) -> list[tuple[Path, str]]:
    """(run directory, job) of a run, or of each member of a sweep."""
    jobs = _lines(path / JOBS)
    if (path / SWEEP).is_file():
        numbers = {str(index): f"{line['job']}_{index}" for line in jobs for index in line["members"] or ()}
        return [(path / index, numbers.get(index, "")) for index in json.loads((path / SWEEP).read_text())]
    return [(path, jobs[-1]["job"] if jobs else "")]


def look(paths: Sequence[Path]) -> list[RunState]:
    """The state of each run. Without Slurm on this machine, what the directories tell."""
    runs = [run for path in paths for run in runs_of(path)]
    try:
        queued = queue([job for _, job in runs if job])
    except SlurmError:
        queued = {}
    return [_state(run_dir, job, queued.get(job)) for run_dir, job in runs]


def _state(run_dir: Path, job: str, queued: Queued | None) -> RunState:
    metrics, attempts = _lines(run_dir / "metrics.jsonl"), _lines(run_dir / "attempts.jsonl")
    steps = _steps(run_dir)
    step = int(metrics[-1]["step"]) if metrics else 0
    recent = metrics[-RECENT:]
    seconds = sum(line["step_time_s"] for line in recent)
    counted = recent[-1]["tokens"] - recent[0]["tokens"] if len(recent) > 1 else 0
    rate = counted / max(seconds - recent[0]["step_time_s"], 1e-9) if counted else None
    last = attempts[-1] if attempts else None
    open_attempt = (run_dir / "attempt.json").exists()
    state, reason = _judge(run_dir, queued, last, open_attempt)
    return RunState(
        run_dir=run_dir,
        job=job,
        state=state,
        nodes=queued.nodes if queued else "",
        step=step,
        steps=steps,
        loss=float(metrics[-1]["loss"]) if metrics and "loss" in metrics[-1] else None,
        tokens_per_s=rate,
        eta_s=(steps - step) * seconds / len(recent) if state == RUNNING and recent else None,
        attempts=len(attempts) + open_attempt,
        reason=reason,
    )


def _judge(run_dir: Path, queued: Queued | None, last: Json | None, open_attempt: bool) -> tuple[str, str]:
    if queued is not None and queued.state in ("PENDING", "CONFIGURING"):
        return WAITING, queued.reason
    if queued is not None and queued.state in ("RUNNING", "COMPLETING", "SUSPENDED"):
        return RUNNING, str(last["reason"]) if last else ""
    if queued is not None and queued.state == "CANCELLED":
        return CANCELLED, str(last["reason"]) if last and not open_attempt else queued.reason
    left = exit_words(run_dir)
    if last is not None and not open_attempt:
        code = last["exit_code"]
        if code == ExitCode.OK:
            return DONE, str(last["reason"])
        return (STOPPED if code == ExitCode.REQUEUE else FAILED), str(last["reason"])
    if left is not None:
        code, words = left
        states = {int(ExitCode.OK): DONE, int(ExitCode.REQUEUE): STOPPED}
        return states.get(code, FAILED), words or f"exit code {code}"
    if queued is not None:
        return (DONE if queued.state == "COMPLETED" else FAILED), queued.state.lower()
    return (UNKNOWN, "an attempt began and left no word of its end") if open_attempt else (UNKNOWN, "")


def exit_words(run_dir: Path) -> tuple[int, str] | None:
    """(exit code, reason) that the newest attempt's ranks left for the job script."""
    files = sorted((run_dir / "logs").glob("*/exit_code"), key=lambda path: path.stat().st_mtime)
    if not files:
        return None
    code, _, words = files[-1].read_text(encoding="utf-8").strip().partition(" ")
    return (int(code), words) if code.isdigit() else None


def _steps(run_dir: Path) -> int:
    import yaml

    frozen = sorted((run_dir / "submissions").glob("*/config.yaml"))
    for file in (run_dir / "config.yaml", *frozen[::-1]):
        try:
            return int(yaml.safe_load(file.read_text(encoding="utf-8"))["train"]["steps"])
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
            continue
    return 0


def _lines(path: Path) -> list[Json]:
    """The whole lines of a JSON Lines file; a line that is being written is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

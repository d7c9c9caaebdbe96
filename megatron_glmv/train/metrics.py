"""What a run reports: metrics.jsonl with full digits, sinks (train/sinks.py), and progress on the terminal or in a log.

Only one rank records. Times are the only values that may differ between two equal runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_glmv.data.types import Json
from megatron_glmv.train.sinks import Sink, numbers

SHOWN = (
    ("loss", "loss", ".4f"),
    ("grad_norm", "grad", ".3f"),
    ("lr", "lr", ".2e"),
    ("val_loss", "val", ".4f"),
    ("reward_mean", "reward", ".3f"),
    ("heldout_reward", "held out", ".3f"),
)
"""What of a step's record is shown where it runs: key, word, format. Line 0 of RLCS, before any update, has no loss."""


class Recorder:
    """Appends one line a step to metrics.jsonl, and shows where the run is.

    Lines of steps that a resumed run will make again are cut off when it starts, so that a step has one line.
    """

    def __init__(
        self,
        run_dir: Path,
        steps: int,
        log_every: int,
        first_step: int,
        tokens: int = 0,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        self.steps, self.log_every = steps, log_every
        self.may_write: Callable[[], None] = lambda: None
        """Asked before each line; raises where another attempt owns the run directory by now."""
        keep_until(self.path, first_step or -1)  # a run that starts anew writes its line of step 0 again
        keep_until(run_dir / "samples.jsonl", first_step)
        self._metrics: IO[str] = self.path.open("a", encoding="utf-8")
        self._samples_path = run_dir / "samples.jsonl"
        self._sinks = sinks
        self._previous: tuple[float, int] = (time.monotonic(), tokens)
        self._progress: Progress | None = None
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("[bold]train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                TextColumn("ETA"), TimeRemainingColumn(), console=Console(), refresh_per_second=2,
            )  # fmt: skip
            self._task = self._progress.add_task("", total=steps, completed=first_step)
            self._progress.start()

    def step(self, record: Json) -> None:
        self.may_write()
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        for sink in self._sinks:
            sink.step(record["step"], numbers(record))
        self._show(record)

    def samples(self, step: int, ids: list[str]) -> None:
        with self._samples_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "ids": ids}) + "\n")

    def note(self, text: str) -> None:
        """A line of its own."""
        print(text, flush=True) if self._progress is None else self._progress.console.print(text, markup=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._metrics.close()
        for sink in self._sinks:
            sink.close()

    def _show(self, record: Json) -> None:
        step, now = record["step"], time.monotonic()
        rate = (record["tokens"] - self._previous[1]) / max(now - self._previous[0], 1e-9)
        text = "  ".join(f"{word} {record[key]:{form}}" for key, word, form in SHOWN if key in record)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=f"{text}  {rate:,.0f} tokens/s")
            self._previous = (now, record["tokens"])
        elif step % self.log_every == 0 or step == self.steps or "val_loss" in record:
            left = (self.steps - step) * record["step_time_s"]
            print(f"step {step}/{self.steps}  {text}  {rate:,.0f} tokens/s  ETA {left / 60:.1f} min", flush=True)
            self._previous = (now, record["tokens"])


def keep_until(path: Path, step: int) -> None:
    """Cuts off the lines of later steps, and one that was half written."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if len(kept) != len(lines):
        new = path.with_suffix(".tmp")
        new.write_text("".join(kept), encoding="utf-8")
        new.replace(path)

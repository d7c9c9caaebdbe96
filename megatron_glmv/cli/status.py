"""`glmv status` and `glmv logs`: what runs are doing, and what they printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.launch.look import RUNNING, WAITING, RunState, look
from megatron_glmv.launch.slurm import log_of

EVERY_S = 5.0


def status(targets: Sequence[str], *, watch: bool) -> None:
    """A line a run: run directories, sweeps, job numbers; without any, runs/latest. Raises ConfigError, SlurmError."""
    paths = [place(target) for target in targets or ["runs/latest"]]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not watch:
        console.print(table(look(paths)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            runs = look(paths)
            live.update(table(runs), refresh=True)
            if not any(run.state in (RUNNING, WAITING) for run in runs):
                return
            time.sleep(EVERY_S)


def place(target: str) -> Path:
    """A run directory, given as such or as the number of its job."""
    if Path(target).is_dir():
        return Path(target).resolve()
    if not target.replace("_", "").isdigit():
        raise ConfigError("RUN_DIR or JOB", target, "is neither a run directory nor a job number")
    return Path(log_of(target)).parent.parent


def table(runs: Sequence[RunState]) -> Table:
    made = Table()
    for name in ("job", "run", "state", "nodes", "step", "loss", "tokens/s", "left", "attempts", "reason"):
        made.add_column(name, overflow="fold")
    for run in runs:
        made.add_row(
            run.job,
            "/".join(run.run_dir.parts[-2:]),
            run.state,
            run.nodes,
            f"{run.step}/{run.steps}" if run.steps else str(run.step),
            "" if run.loss is None else f"{run.loss:.4f}",
            "" if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
            "" if run.eta_s is None else f"{run.eta_s / 60:.0f} min",
            str(run.attempts),
            run.reason,
        )
    return made


def logs(target: str, rank: int | None, attempt: int | None) -> None:
    """Prints the log of the newest attempt: of its script and rank 0, or of the rank asked for. Raises ConfigError."""
    run_dir = place(target)
    attempts = sorted((run_dir / "logs").glob("*.*/"), key=lambda path: path.stat().st_mtime)
    attempts = [path for path in attempts if path.is_dir()]
    if attempt is not None:
        attempts = [path for path in attempts if path.name.endswith(f".{attempt}")]
    if not attempts:
        raise ConfigError("RUN_DIR or JOB", target, "has no log of such an attempt")
    chosen = attempts[-1]
    files = [chosen / f"rank_{rank or 0}.log"]
    if rank is None:
        files = [*(run_dir / "logs").glob(f"slurm-{chosen.name.partition('.')[0]}*.log"), *files]
    for file in files:
        print(f"== {file}")
        print(file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "(not there)", flush=True)

"""`glmv sweep`: members of a submitted sweep: how they are, what came out, and another try for the failed ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Look at a submitted sweep, and run its failed members again.")
Dir = Annotated[Path, typer.Argument(help="The sweep's directory.", exists=True, file_okay=False)]


@app.command()
def status(directory: Dir) -> None:
    """A line a member."""
    from megatron_glmv.cli.status import status as show

    show([str(directory)], watch=False)


@app.command()
def results(
    directory: Dir,
    out: Annotated[Path | None, typer.Option(help="Where the table goes as CSV; default DIR/results.csv.")] = None,
) -> None:
    """Final and best losses by overrides, in the terminal and as CSV."""
    from rich.console import Console
    from rich.table import Table

    rows = collect(directory)
    target = out or directory / "results.csv"
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    made = Table(*rows[0], title=str(directory))
    for row in rows:
        made.add_row(*("" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)
                       for value in row.values()))  # fmt: skip
    Console().print(made)
    print(f"written to {target}")


@app.command("retry-failed")
def retry_failed(directory: Dir) -> None:
    """Submits exactly the members that failed, as they were frozen; they continue from their newest checkpoints."""
    from megatron_glmv.launch.look import CANCELLED, FAILED, UNKNOWN, look
    from megatron_glmv.launch.retry import retry

    again = (CANCELLED, FAILED, UNKNOWN)
    members = tuple(int(run.run_dir.name) for run in look([directory.resolve()]) if run.state in again)
    if not members:
        print("no member has failed")
        return
    for job, part in retry(directory.resolve(), members):
        print(f"job {job}: members {', '.join(map(str, part))}")


def collect(directory: Path) -> list[dict[str, Any]]:
    """A row a member: its overrides, state, and losses. Raises ConfigError where `directory` is no sweep."""
    from megatron_glmv.config.errors import ConfigError
    from megatron_glmv.launch.look import look
    from megatron_glmv.launch.submit import SWEEP

    if not (directory / SWEEP).is_file():
        raise ConfigError("DIR", str(directory), "is not the directory of a submitted sweep")
    overrides: dict[str, list[str]] = json.loads((directory / SWEEP).read_text())
    keys = list(dict.fromkeys(o.partition("=")[0] for one in overrides.values() for o in one))
    rows = []
    for run in look([directory.resolve()]):
        given = dict(o.partition("=")[::2] for o in overrides[run.run_dir.name])
        steps = [step for step in _metrics(run.run_dir) if "loss" in step]
        held_out = [step["val_loss"] for step in steps if step.get("val_loss") is not None]
        rows.append(
            {
                "member": run.run_dir.name,
                **{key: given.get(key) for key in keys},
                "state": run.state,
                "step": run.step,
                "loss": steps[-1]["loss"] if steps else None,
                "best_loss": min((step["loss"] for step in steps), default=None),
                "val_loss": held_out[-1] if held_out else None,
                "best_val_loss": min(held_out, default=None),
                "reason": run.reason,
            }
        )
    return rows


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]

"""`glmv data prepare`: raw shards to shards worth training on, resumable, on one machine or as a Slurm array."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from megatron_glmv.config.errors import ConfigError


def prepare(
    source: Annotated[Path, typer.Argument(help="Directory of the raw *.tar shards.")],
    out: Annotated[Path, typer.Argument(help="Directory for the prepared ones; intermediate results in OUT/prepare.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="group.name=value, over the file's.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with options; docs/prepare.md.")] = None,
    phase: Annotated[str, typer.Option(help="scan, whole, write, finish, or all of them in turn.")] = "all",
    shard: Annotated[
        str, typer.Option(help="i/N: every N-th shard from i on; in a Slurm array it is known.", show_default=False)
    ] = "",
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
) -> None:
    """Filter, decontaminate, deduplicate, balance and recaption a corpus. Run again after a kill: it goes on."""
    from rich.console import Console

    from megatron_glmv.data.prepare import options, report
    from megatron_glmv.data.prepare.pipeline import Preparation

    if config is not None and not config.is_file():
        raise ConfigError("--config", config, "is not a file")
    chosen = options.load(config.read_text(encoding="utf-8") if config else "", overrides or [])
    by_shards = phase in ("scan", "write")
    preparation = Preparation(source, out, chosen, workers, share(shard, dict(os.environ)) if by_shards else (0, 1))
    if shard and not by_shards:
        raise ConfigError("--shard", shard, f"phase {phase} is not done by shards", "give it to scan and write only")
    for line in preparation.skipped():
        typer.echo(line, err=True)
    preparation.run(phase)
    if phase in ("all", "finish"):
        figures = json.loads((out / report.REPORT).read_bytes())
        Console().print(report.table(figures))
        print(
            f"{figures['samples_out']} of {figures['samples_in']} samples: {out}; {report.LEDGER} says why not others"
        )


def share(given: str, environment: dict[str, str]) -> tuple[int, int]:
    """(i, N) of `i/N`, else of the Slurm array that this task belongs to, else the whole. Raises ConfigError."""
    if given:
        index, _, count = given.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ConfigError("--shard", given, "is not of the form i/N")
        return int(index), int(count)
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_STEP")
    if names[0] not in environment:
        return 0, 1
    try:
        task, least, size, step = (int(environment.get(name, "1")) for name in names)
    except ValueError as error:
        raise ConfigError(names[0], environment[names[0]], "and its kin are not numbers") from error
    return (task - least) // max(step, 1), size

"""Members of a sweep again, from what was frozen when it was submitted."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import from_dict
from megatron_glmv.launch.job import Job, shape_of
from megatron_glmv.launch.submit import record


def retry(directory: Path, members: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """(number, members) of each new job array. Raises ConfigError where `directory` is no sweep."""
    frozen = submissions_of(directory, members)
    return [(_again(directory, submission, part), part) for submission, part in frozen.items()]


def submissions_of(directory: Path, members: tuple[int, ...]) -> dict[Path, tuple[int, ...]]:
    """Members by the newest submission that each was frozen in (a sweeper submits bit by bit). Raises ConfigError."""
    newest = {int(file.stem): file.parents[1] for file in sorted((directory / "submissions").glob("*/members/*.yaml"))}
    if any(member not in newest for member in members):
        raise ConfigError("DIR", str(directory), f"is not the directory of a submitted sweep of members {members}")
    return {
        submission: tuple(member for member in members if newest[member] == submission)
        for submission in sorted({newest[member] for member in members})
    }


def _again(directory: Path, submission: Path, members: tuple[int, ...]) -> str:
    config = from_dict(yaml.safe_load((submission / "config.yaml").read_text(encoding="utf-8")))
    return record(
        Job(
            name=config.experiment,
            shape=shape_of(config),
            cluster=config.cluster,
            run_dir=directory,
            submission=submission,
            python="python3" if config.cluster.container != "none" else sys.executable,
            members=members,
        )
    )

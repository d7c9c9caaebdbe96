"""Members of a sweep again, from what was frozen when it was submitted."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import from_dict
from megatron_glmv.launch.job import Job, shape_of
from megatron_glmv.launch.submit import record


def retry(directory: Path, members: tuple[int, ...]) -> str:
    """The number of the new job array. Raises ConfigError where `directory` is no sweep."""
    submissions = sorted((directory / "submissions").glob("*/members"))
    if not submissions:
        raise ConfigError("DIR", str(directory), "is not the directory of a submitted sweep")
    submission = submissions[0].parent
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

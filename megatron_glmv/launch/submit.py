"""From overrides to jobs in the queue: one run, or a sweep as one array."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import compose, explain, to_yaml
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.launch.freeze import freeze, next_submission
from megatron_glmv.launch.job import Job, sbatch_argv, shape_of
from megatron_glmv.launch.slurm import submit

JOBS = "jobs.jsonl"
"""In a run directory: {job, submission, members, time} of each sbatch call."""
SWEEP = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """Those of `glmv submit` itself."""

    hold: bool = False
    after: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything decided, nothing written."""

    job: Job
    config: Config
    members: dict[int, Config] | None = None
    overrides: dict[int, list[str]] | None = None

    def freeze(self) -> None:
        """Writes the submission into the run directory."""
        freeze(self.job.submission, to_yaml(self.config), self.members)
        if self.overrides is not None:
            file = self.job.run_dir / SWEEP
            told = json.loads(file.read_text()) if file.exists() else {}  # a sweeper submits members bit by bit
            file.write_text(json.dumps(told | {str(i): o for i, o in self.overrides.items()}, indent=1))

    def behind(self, job: str) -> Prepared:
        """The same, to start when `job` has ended well."""
        return dataclasses.replace(self, job=dataclasses.replace(self.job, after=(*self.job.after, job)))

    def send(self) -> str:
        """Freezes, submits, and returns the job's number."""
        self.freeze()
        return record(self.job)


def record(job: Job) -> str:
    """Submits a job whose submission is frozen; notes it in the run directory."""
    number = submit(sbatch_argv(job))
    line = {
        "job": number,
        "submission": job.submission.name,
        "members": None if job.members is None else list(job.members),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (job.run_dir / JOBS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return number


def prepare(overrides: Sequence[str], options: Options) -> Prepared:
    """One run. Raises ConfigError."""
    config = _complete(compose(overrides), "")
    return Prepared(_job(config, options), config)


def prepare_sweep(overrides: Sequence[str], options: Options) -> Prepared:
    """Every combination of the values given as a,b; all of one shape. Raises ConfigError, also for a single member."""
    return prepare_members(expand(overrides), options)


def prepare_members(combinations: Sequence[Sequence[str]], options: Options, first: int = 0) -> Prepared:
    """Members `first`, `first` + 1, ... of one array, each given by all of its overrides. Raises ConfigError."""
    base = _complete(compose(combinations[0]), "-sweep")
    assert base.run_dir is not None
    members: dict[int, Config] = {}
    for index, one in enumerate(combinations, start=first):
        config = compose(one)
        members[index] = _absolute(dataclasses.replace(config, run_dir=str(Path(base.run_dir, str(index)))))
        validate(members[index], shape_of(config).world)
        if (shape_of(config), config.cluster) != (shape_of(base), base.cluster):
            raise ConfigError("-m", " ".join(one), "needs other nodes than the first member", "submit it by itself")
    common = set.intersection(*map(set, combinations)) if len(combinations) > 1 else set()
    told = {i: [o for o in one if o not in common] for i, one in enumerate(combinations, start=first)}
    job = dataclasses.replace(_job(base, options), members=tuple(members))
    return Prepared(job, base, members, told)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """As Hydra's own sweeper does: the product of all choices and ranges, the last varying fastest."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise explain(error, overrides) from error
    lists = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [str(o.input_line)]
        for o in parsed
    ]
    return [list(one) for one in itertools.product(*lists)]


def _complete(config: Config, suffix: str) -> Config:
    """With a run directory, and every path absolute: the job may start elsewhere."""
    run_dir = config.run_dir
    if run_dir is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        run_dir = f"runs/{config.experiment}/{stamp}{suffix}"
        for other in itertools.count(1):
            if not Path(run_dir).exists():
                break
            run_dir = f"runs/{config.experiment}/{stamp}-{other}{suffix}"
    config = _absolute(dataclasses.replace(config, run_dir=run_dir))
    validate(config, shape_of(config).world)
    return config


def _absolute(config: Config) -> Config:
    data = config.data

    def place(path: str) -> str:
        return str(Path(path).absolute()) if path not in ("", "auto") else path

    return dataclasses.replace(
        config,
        run_dir=None if config.run_dir is None else str(Path(config.run_dir).absolute()),
        init_from=None if config.init_from is None else str(Path(config.init_from).absolute()),
        data=dataclasses.replace(
            data, path=place(data.path), tokenizer=place(data.tokenizer), val_path=place(data.val_path)
        ),
        rl=dataclasses.replace(config.rl, prompts=place(config.rl.prompts), heldout=place(config.rl.heldout)),
    )


def _job(config: Config, options: Options) -> Job:
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    return Job(
        name=config.experiment,
        shape=shape_of(config),
        cluster=config.cluster,
        run_dir=run_dir,
        submission=next_submission(run_dir),
        python="python3" if config.cluster.container != "none" else sys.executable,
        after=options.after,
        hold=options.hold,
    )

"""`glmv submit`: one run, a sweep (-m) or a pipeline, to Slurm."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.launch.conversion import Conversion
from megatron_glmv.launch.freeze import scripts_dir
from megatron_glmv.launch.job import sbatch_argv
from megatron_glmv.launch.pipeline import prepare_pipeline
from megatron_glmv.launch.slurm import call
from megatron_glmv.launch.submit import Options, Prepared, prepare, prepare_sweep


def main(
    overrides: Sequence[str], *, multirun: bool, dry_run: bool, test_only: bool, hold: bool, after: Sequence[str]
) -> None:
    """Prints the number and run directory of each job. Raises ConfigError or SlurmError."""
    options = Options(hold=hold, after=tuple(after))
    pipelines = [o.partition("=")[2] for o in overrides if o.startswith("pipeline=")]
    overrides = [o for o in overrides if not o.startswith("pipeline=")]
    if pipelines and multirun:
        raise ConfigError("-m", pipelines[-1], "a pipeline cannot be a sweep")
    jobs: list[Prepared | Conversion]
    if pipelines:
        jobs = prepare_pipeline(pipelines[-1], overrides, options)
    else:
        jobs = [prepare_sweep(overrides, options) if multirun else prepare(overrides, options)]
    if dry_run or test_only:
        for prepared in jobs:
            print(_try(prepared, test_only))
        return
    sent: list[str] = []
    for prepared in jobs:
        if sent:
            prepared = prepared.behind(sent[-1])
        sent.append(prepared.send())
        print(f"job {sent[-1]}: {prepared.job.name} in {prepared.job.run_dir}", flush=True)


def _try(prepared: Prepared | Conversion, ask_slurm: bool) -> str:
    """The call as a shell would take it, and the script; or what Slurm says to it."""
    argv = sbatch_argv(prepared.job)
    script = scripts_dir() / "job.sbatch"
    if not ask_slurm:
        return f"{shlex.join(argv)}\n\n# {script}\n{script.read_text()}"
    place = argv.index(str(prepared.job.submission / "job.sbatch"))
    return call([*argv[:place], "--test-only", str(script), *argv[place + 1 :]])

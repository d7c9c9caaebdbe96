"""Slurm's commands, by argument list, and the little of their output that is stable across versions."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_glmv.config.errors import ConfigError


class SlurmError(RuntimeError):
    """A command of Slurm refused, or there is none."""

    exit_code = 64


@dataclass(frozen=True)
class Queued:
    """A line of squeue. `job` is 12, or 12_3 for a member of an array."""

    job: str
    state: str
    reason: str
    nodes: str


def call(argv: Sequence[str]) -> str:
    """Runs a command of Slurm and returns what it printed. Inside a job, that job's own variables are not passed on:
    sbatch would take them for options."""
    env = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM_", "SBATCH_"))}
    try:
        done = subprocess.run(list(argv), capture_output=True, text=True, env=env, timeout=60, check=False)
    except FileNotFoundError:
        raise SlurmError(f"{argv[0]} is not on PATH; is this a machine that can submit to Slurm?") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{argv[0]} did not answer for 60 s") from None
    if done.returncode:
        raise SlurmError(f"{argv[0]} ended with code {done.returncode}: {' '.join(done.stderr.split())}")
    return (done.stdout or done.stderr).strip()


def submit(argv: Sequence[str]) -> str:
    """The number of the new job."""
    job = call(argv).splitlines()[-1].partition(";")[0]
    if not job.isdigit():
        raise SlurmError(f"sbatch answered {job!r} instead of a job number")
    return job


def queue(jobs: Sequence[str]) -> dict[str, Queued]:
    """Those of `jobs` (numbers, arrays taken apart) that Slurm still holds in its queue, by number."""
    wanted = sorted({job.partition("_")[0] for job in jobs})
    if not wanted:
        return {}
    try:
        text = call(
            ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(wanted)}", "--format=%i|%T|%r|%N"]
        )
    except SlurmError as error:
        if "Invalid job id" in str(error):  # none of them is known any more
            return {}
        raise
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return {row[0]: Queued(*row) for row in rows}


def log_of(job: str) -> str:
    """The file a job's script writes to, while Slurm remembers the job."""
    if not job.replace("_", "").isdigit():
        raise ConfigError("JOB", repr(job), "is neither a run directory nor a job number")
    for line in call(["scontrol", "show", "job", job]).splitlines():  # a line each: a path may hold blanks
        if line.strip().startswith("StdOut="):
            return line.strip().removeprefix("StdOut=")
    raise SlurmError(f"scontrol does not say where job {job} writes")

"""`glmv train -m ... hydra/launcher=glmv_slurm`: what `glmv submit -m` does, behind any of Hydra's sweepers.

The members of one call become one job array. Without `hydra.launcher.wait` the command ends at once, as grids want;
with it, it waits for the array and hands each member's objective back, as sweepers that choose the next values want.
Hydra imports this file at every start: nothing heavy above the class.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """Submits; trains nothing itself."""

    def __init__(self, wait: bool = False, poll_s: float = 10.0) -> None:
        self.wait, self.poll_s = wait, poll_s

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One array; a JobReturn for each member, with a value only after waiting. Raises ConfigError, SlurmError."""
        from megatron_glmv.launch.submit import Options, prepare_members

        quoted = str(Path(self.config.hydra.sweep.dir).absolute()).replace("'", "\\'")  # for Hydra's grammar
        folder = f"run_dir='{quoted}'"
        own = [[o for o in one if not o.startswith("run_dir=")] for one in job_overrides]
        prepared = prepare_members([[*one, folder] for one in own], Options(), first=initial_job_idx)
        job = prepared.send()
        print(f"job {job}: {len(own)} members of {prepared.job.name} in {prepared.job.run_dir}", flush=True)
        states = self._states(job, prepared.job.run_dir) if self.wait else {}
        return [
            self._returned(one, prepared.job.run_dir / str(index), states)
            for index, one in enumerate(own, start=initial_job_idx)
        ]

    def _states(self, job: str, folder: Path) -> dict[Path, Any]:
        from megatron_glmv.launch.look import look
        from megatron_glmv.launch.slurm import call

        while job in call(["squeue", "--noheader", "--format=%F"]).split():
            time.sleep(self.poll_s)
        return {state.run_dir: state for state in look([folder])}

    def _returned(self, overrides: Sequence[str], run_dir: Path, states: dict[Path, Any]) -> JobReturn:
        value: Any = None
        status = JobStatus.COMPLETED
        if self.wait:
            from megatron_glmv.cli.train import objective

            state = states[run_dir]
            if state.state == "DONE":
                value = objective(run_dir)
            else:
                status, value = JobStatus.FAILED, RuntimeError(f"{run_dir}: {state.state}: {state.reason}")
        return JobReturn(overrides=list(overrides), working_dir=str(run_dir), _return_value=value, status=status)

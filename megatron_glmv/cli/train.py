"""`glmv train`: a hydra.main application (so that -m, launchers and sweepers work) whose exit codes are ours.

Plain hydra.main ends with code 1 and several lines on a wrong key. Here every refusal is one line and code 64, and a
sweep runs all of its members and ends with the worst of their codes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import conf_dir, explain, from_omegaconf, register_schema
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.resilience.exit_codes import ExitCode, worst

_codes: list[int] = []
"""Exit codes of the runs of this process."""
_parent = os.getpid()


EXAMPLE = "experiment=tiny_pretrain"
"""Whose options `--help` lists when no experiment is named: Hydra composes one for its help too."""


class MemberFailed(Exception):
    """How a member of a sweep that a launcher runs in another process tells its code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def main(arguments: Sequence[str]) -> int:
    """Runs `glmv train ARGUMENTS` and returns its exit code."""
    _codes.clear()
    if _asks_for_help(arguments):
        arguments = [EXAMPLE, *arguments]
    try:
        register_schema()
        with _as_hydra_program(arguments):
            _application()
    except (HydraException, OmegaConfBaseException, ConfigError, ValueError) as error:
        refused = explain(error, arguments)
        print(f"glmv train: {refused}", file=sys.stderr, flush=True)
        return worst([*_codes, refused.exit_code])
    except MemberFailed as failed:
        return worst([*_codes, failed.exit_code])
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # --help, --cfg and --info end with 0; argparse with 2 on a flag it doesn't know
        return int(ExitCode.CONFIG) if stop.code == 2 else int(stop.code or 0)
    return worst(_codes)


def _asks_for_help(arguments: Sequence[str]) -> bool:
    """For help in general, not that of one experiment."""
    return not {"-h", "--help"}.isdisjoint(arguments) and not any(a.startswith("experiment=") for a in arguments)


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def _application(node: DictConfig) -> float | None:
    """One run. What it returns is what a sweeper minimises."""
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and ExitCode.REQUEUE in _codes:  # asked to stop: the members behind are for the next start
        return None
    run_dir = None
    try:
        config = from_omegaconf(node)
        if sweep:
            config = _member(config)
        run_dir = config.run_dir
        code = _run(config)
    except Exception as error:
        code = int(getattr(error, "exit_code", 1))
        if code == 1:
            traceback.print_exc()
        else:
            print(f"glmv train: {explain(error, HydraConfig.get().overrides.task)}", file=sys.stderr, flush=True)
    _codes.append(code)
    if not sweep:
        return None
    if code:
        print(f"member {HydraConfig.get().job.num} ended with exit code {code}", file=sys.stderr, flush=True)
        if os.getpid() != _parent:
            raise MemberFailed(code)
    return objective(Path(run_dir)) if run_dir and not code else None


def _run(config: Config) -> int:
    if not {"RANK", "SLURM_PROCID"} & os.environ.keys():  # no launcher, so the world is the layout's own
        validate(config, None)  # run() does so too, but after the seconds that importing torch takes
    from megatron_glmv.stages.run import run

    return run(config)


def _member(config: Config) -> Config:
    """A sweep's member in its own run directory, announced by its number and overrides."""
    context = HydraConfig.get()
    overrides = " ".join(override for override in context.overrides.task)
    print(f"member {context.job.num}: {overrides}", flush=True)
    return dataclasses.replace(config, run_dir=context.runtime.output_dir)


def objective(run_dir: Path) -> float | None:
    """The last validation loss of a run, or its last training loss."""
    try:
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return None
    steps = [json.loads(line) for line in lines]
    for name in ("val_loss", "loss"):
        values = [step[name] for step in steps if step.get(name) is not None]
        if values:
            return float(values[-1])
    return None


@contextmanager
def _as_hydra_program(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads sys.argv, and hands its exceptions on only when HYDRA_FULL_ERROR is set."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    folder = [a.partition("=")[2] for a in arguments if a.startswith("run_dir=")]
    sweep_dir = [f"hydra.sweep.dir={folder[-1]}"] if folder else []
    flags = [a for a in arguments if a in ("-m", "--multirun")]  # argparse takes them only before or behind all others
    sys.argv = ["glmv train", *flags, *(a for a in arguments if a not in flags), *sweep_dir]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error

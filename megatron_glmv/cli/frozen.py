"""`python -m megatron_glmv.cli.frozen CONFIG RUN_DIR`: what a job's ranks run. No Hydra: the config was resolved when
the job was submitted. For a step that converts, CONFIG holds the arguments of `glmv convert` instead."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

import yaml

from megatron_glmv.config.load import from_dict
from megatron_glmv.resilience.exit_codes import ExitCode, say_exit_code
from megatron_glmv.resilience.signals import REQUESTS


def main(config_file: str, run_dir: str) -> int:
    """The run's exit code."""
    tree = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    if "convert" in tree:
        return convert(tree["convert"])
    config = from_dict(tree)
    from megatron_glmv.stages.run import run

    return run(dataclasses.replace(config, run_dir=run_dir))


def convert(arguments: list[str]) -> int:
    """Has no loop that could ask for a notice: it leaves on the spot, and goes on where it was when it runs again."""
    from megatron_glmv.cli.convert import app

    for number in REQUESTS:
        signal.signal(number, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    return int(app(arguments, standalone_mode=False) or 0)


def _leave(number: int, frame: FrameType | None) -> None:
    say_exit_code(int(ExitCode.REQUEUE), f"{signal.Signals(number).name} while converting")
    os._exit(int(ExitCode.REQUEUE))


if __name__ == "__main__":
    # A notice that comes while modules are imported waits until there is a handler (resilience/signals.py).
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        code = main(*sys.argv[1:])
    except Exception as error:
        from megatron_glmv.stages.run import lost_peer

        code = int(getattr(error, "exit_code", ExitCode.HANG if lost_peer(error) else 1))
        say_exit_code(code, f"{type(error).__name__}: {error}")
        if code in (1, ExitCode.HANG):
            traceback.print_exc()
        else:
            print(f"glmv: {error}", file=sys.stderr, flush=True)
    say_exit_code(code, "")
    sys.stdout.flush()
    os._exit(code) if code not in (0, 1) else sys.exit(code)

"""`python -m megatron_glmv.cli.frozen CONFIG RUN_DIR`: what a job's ranks run. No Hydra: the config was resolved when
the job was submitted."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import traceback
from pathlib import Path

import yaml

from megatron_glmv.config.load import from_dict
from megatron_glmv.resilience.exit_codes import ExitCode, say_exit_code


def main(config_file: str, run_dir: str) -> int:
    """The run's exit code."""
    config = from_dict(yaml.safe_load(Path(config_file).read_text(encoding="utf-8")))
    from megatron_glmv.stages.run import run

    return run(dataclasses.replace(config, run_dir=run_dir))


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

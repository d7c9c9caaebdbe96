"""The `glmv` command. Nothing here imports torch; a command imports what it needs when it runs."""

from __future__ import annotations

import sys

from megatron_glmv.resilience.exit_codes import ExitCode

USAGE = 2
"""What click ends with when options don't parse; here that is a config error like any other."""


def main() -> None:
    """Entry point of the console script. An error that carries an exit code is one line on stderr and that code."""
    from megatron_glmv.cli.app import app

    try:
        app(prog_name="glmv")
    except SystemExit as stop:
        sys.exit(int(ExitCode.CONFIG) if stop.code == USAGE else stop.code)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        print(f"glmv: {error}", file=sys.stderr, flush=True)
        sys.exit(int(code))

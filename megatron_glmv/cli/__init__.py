"""The `glmv` command. Nothing here imports torch; a command imports what it needs when it runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from megatron_glmv.cli.app import app

    app(prog_name="glmv")

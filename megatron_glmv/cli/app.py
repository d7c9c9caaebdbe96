"""The commands, their options and their help. Each hands over to the function that does the work."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trains GLM-4.5V and GLM-4.1V on Megatron-Core, on GPUs or on CPU processes.",
)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def train(context: typer.Context) -> None:
    """Run one stage: experiment=NAME \\[key=value ...]; -m sweeps; --help lists the groups and every option."""
    from megatron_glmv.cli.train import main

    raise typer.Exit(main(context.args))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """What is installed, importable and usable, and what stands in for what is missing."""
    from megatron_glmv.platform.doctor import main

    raise typer.Exit(main(as_json))

"""The commands, their options and their help. Each hands over to the function that does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_glmv.cli import data as data_commands

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trains GLM-4.5V and GLM-4.1V on Megatron-Core, on GPUs or on CPU processes.",
)
app.add_typer(data_commands.app, name="data")

Ckpt = Annotated[Path, typer.Option(help="A step's directory, a run's checkpoints, or the run: then its newest.")]


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def train(context: typer.Context) -> None:
    """Run one stage: experiment=NAME \\[key=value ...]; -m sweeps; --help lists the groups and every option."""
    from megatron_glmv.cli.train import main

    raise typer.Exit(main(context.args))


@app.command("eval")
def evaluate(
    ckpt: Ckpt,
    data: Annotated[Path, typer.Option(help="Questions, one conversation a line, media paths relative to the file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for results; default RUN_DIR/eval/NAME.")] = None,
    shuffle_media: Annotated[bool, typer.Option(help="Exchange the media between samples (control).")] = False,
    control: Annotated[bool, typer.Option(help="Both ways, side by side.")] = False,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    limit: Annotated[int | None, typer.Option(help="Questions of each task.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder; default: the run's own.")] = None,
) -> None:
    """Exact-match accuracy by task on held-out questions; predictions are written beside it."""
    from megatron_glmv.evaluate.run import main

    main(
        ckpt,
        data,
        out,
        shuffle_media=shuffle_media,
        control=control,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        limit=limit,
        tokenizer=tokenizer,
    )


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="One or more run directories.")],
    out: Annotated[Path | None, typer.Option(help="File; default RUN_DIR/report.html of the first.")] = None,
) -> None:
    """One self-contained HTML page of a run, or of several side by side."""
    from megatron_glmv.report.page import main

    print(main(run_dirs, out))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False) -> None:
    """What is installed, importable and usable, and what stands in for what is missing."""
    from megatron_glmv.platform.doctor import main

    raise typer.Exit(main(as_json))

"""`glmv eval`: ask a checkpoint the questions of a file; `glmv eval compare`: two results side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_glmv.config.errors import ConfigError

app = typer.Typer(invoke_without_command=True, help="Exact-match accuracy by task on held-out questions.")


@app.callback()
def evaluate(
    context: typer.Context,
    ckpt: Annotated[Path | None, typer.Option(help="A step's directory, a run's checkpoints, or the run.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Questions, one conversation a line, media paths relative to the file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results; default RUN_DIR/eval/NAME.")] = None,
    shuffle_media: Annotated[
        bool, typer.Option("--shuffle-media", help="Exchange the media between samples (control).")
    ] = False,
    control: Annotated[bool, typer.Option("--control", help="Both ways, side by side.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts generated together.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which an answer is cut.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder; default: the run's own.")] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="answer: the prompt closes the thinking; nothink: it only asks to; think: left to the model."
        ),
    ] = "answer",
) -> None:
    """Exact-match accuracy by task on held-out questions; predictions are written beside it."""
    if context.invoked_subcommand is not None:
        return
    if ckpt is None:
        raise ConfigError("--ckpt", None, "has to be given: whom to ask", "give a run directory or a checkpoint's")
    if data is None:
        raise ConfigError("--data", None, "has to be given: what to ask", "give a file of questions, one a line")
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
        mode=mode,
    )


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A directory that `glmv eval` wrote, or its results.json.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
) -> None:
    """Two evaluations side by side by task, with their intervals."""
    from megatron_glmv.evaluate import results

    results.show(results.compare(a, b))

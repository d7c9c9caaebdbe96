"""`glmv data`: make shards, look at their lengths, show one sample as it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Build and look at training shards.")


@app.command()
def make(
    out: Annotated[Path, typer.Option(help="Directory for the shards; must hold none yet.")],
    jsonl: Annotated[Path | None, typer.Option(help="Conversations, one a line; media paths relative to it.")] = None,
    directory: Annotated[Path | None, typer.Option(help="A folder of such files instead.")] = None,
    samples_per_shard: int = 1000,
    workers: Annotated[int, typer.Option(help="Processes that read and probe media.")] = 1,
) -> None:
    """Conversations with media to tar shards and their index. Rejected ones are listed, with the reason."""
    from megatron_glmv.data.make import make_shards

    made = make_shards(out, jsonl=jsonl, directory=directory, samples_per_shard=samples_per_shard, workers=workers)
    print(f"{made.samples} samples with {made.media} media in {made.shards} shards, {made.rejected} rejected: {out}")
    if made.rejects is not None:
        print(f"reasons in {made.rejects}")

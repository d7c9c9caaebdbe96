"""`glmv data`: make shards, look at their lengths, show one sample as it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_glmv.cli.prepare import prepare

app = typer.Typer(no_args_is_help=True, help="Build, prepare and look at training shards.")
app.command()(prepare)


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


Overrides = Annotated[
    list[str] | None, typer.Argument(help="experiment=NAME and key=value, as for train; default tiny_pretrain.")
]


@app.command()
def stats(
    directory: Annotated[Path | None, typer.Argument(help="Directory of the shards; not needed with --preset.")] = None,
    overrides: Overrides = None,
    pack: Annotated[bool, typer.Option("--pack", help="Fill of packs and evenness over replicas, too.")] = False,
    preset: Annotated[bool, typer.Option("--preset", help="Pack a preset mixture of 20,000 samples.")] = False,
    png: Annotated[Path | None, typer.Option(help="Histograms as a picture.")] = None,
) -> None:
    """Tokens, visual tokens and frames by domain; histograms of them; how they pack."""
    from megatron_glmv.data.commands import show_preset, show_stats

    given = overrides or []
    if preset:
        show_preset([str(directory), *given] if directory else given)
        return
    if directory is None:
        raise typer.BadParameter("name the directory of the shards, or --preset")
    show_stats(directory, given, pack=pack, png=png)


@app.command()
def show(
    shard: Annotated[Path, typer.Argument(help="A shard, or the directory that holds it.")],
    key: Annotated[str, typer.Argument(help="Key of the sample.")],
    overrides: Overrides = None,
    save: Annotated[Path | None, typer.Option(help="Write its arrays to this safetensors file.")] = None,
) -> None:
    """One sample exactly as it is trained: tokens, loss weights, positions, frames and their times."""
    from megatron_glmv.data.commands import show_sample

    show_sample(shard, key, overrides or [], save=save)


@app.command()
def template(
    tokenizer: Annotated[Path, typer.Argument(help="A tokenizer directory with a chat template.")],
    form: Annotated[str, typer.Option("--template", help="glm45v or glm41v, as data.template.")] = "glm45v",
) -> None:
    """Is the chat template that a directory carries the one trained under, token by token? Exit code 65 if not."""
    from megatron_glmv.data.commands import show_template

    if not show_template(tokenizer, form):
        raise typer.Exit(65)


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Directory to fill; an unfinished one is gone on with.")],
    samples: Annotated[int, typer.Option(help="Samples of all domains and tiers together.")] = 1000,
    domains: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "all",
    tiers: Annotated[
        str, typer.Option(help="Difficulties 0 (112 x 112 pixels, learnable in minutes) to 3.")
    ] = "0,1,2,3",
    split: Annotated[str, typer.Option(help="train, val (train's templates, other seeds) or heldout.")] = "train",
    form: Annotated[str, typer.Option(help="pretrain, sft, or questions (for RL pools and evaluation).")] = "pretrain",
    thinking: Annotated[str, typer.Option(help="Of sft: mixed, on or off.")] = "mixed",
    seed: int = 0,
    scale: Annotated[int, typer.Option(help="Pictures are this many times as large.")] = 1,
    samples_per_shard: int = 500,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A JSONL file with media instead of shards.")] = False,
    vocab: Annotated[int, typer.Option(help="Train a tokenizer of this size beside OUT, too.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes; the result does not depend on it.")] = 2,
) -> None:
    """Procedural samples of every domain, with exact answers, in four tiers. See docs/synthetic.md."""
    from megatron_glmv.data.synthetic.domains.command import synthesise

    synthesise(
        out,
        samples=samples,
        domains=domains,
        tiers=tiers,
        split=split,
        form=form,
        thinking=thinking,
        seed=seed,
        scale=scale,
        part=samples_per_shard,
        shards=False if jsonl else None,
        vocab=vocab,
        workers=workers,
    )


@app.command()
def lint(
    data: Annotated[Path, typer.Argument(help="SFT conversations, one a line.")],
    out: Annotated[Path | None, typer.Option(help="Write the sound ones here; default: only report.")] = None,
    template: Annotated[str, typer.Option(help="glm45v or glm41v.")] = "glm45v",
) -> None:
    """Form, boxes, thinking, mixed languages, redundancy of SFT data. Exit code 65 for faults without --out."""
    from megatron_glmv.evaluate.lint import lint as check

    report = check(data, out, template)
    dropped = report.lines - report.kept
    print(f"{report.lines} conversations, {report.kept} sound, {dropped} not{': ' if dropped else ''}", end="")
    print(", ".join(f"{check} {count}" for check, count in report.dropped.items()))
    if dropped and out is None:
        raise typer.Exit(65)

"""The commands, their options and their help. Each hands over to the function that does the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_glmv.cli import convert as convert_commands
from megatron_glmv.cli import data as data_commands
from megatron_glmv.cli import evaluate as evaluate_commands
from megatron_glmv.cli import sweep as sweep_commands
from megatron_glmv.cli.reward import reward
from megatron_glmv.config.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trains GLM-4.5V and GLM-4.1V on Megatron-Core, on GPUs or on CPU processes.",
)
app.add_typer(convert_commands.app, name="convert")
app.add_typer(data_commands.app, name="data")
app.add_typer(sweep_commands.app, name="sweep")
app.add_typer(evaluate_commands.app, name="eval")
app.command()(reward)

Ckpt = Annotated[Path, typer.Option(help="A step's directory, a run's checkpoints, or the run: then its newest.")]
Tokenizer = Annotated[Path | None, typer.Option(help="Folder; default: the run's own.")]


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)
def train(context: typer.Context) -> None:
    """Run one stage: experiment=NAME \\[key=value ...]; -m sweeps; --help lists the groups and every option."""
    from megatron_glmv.cli.train import main

    raise typer.Exit(main(context.args))


@app.command()
def generate(
    ckpt: Ckpt,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A clip; may be repeated.")] = None,
    prompt: Annotated[str, typer.Option(help="The question, shown behind pictures and clips.")] = "",
    messages: Annotated[Path | None, typer.Option(help="A JSON file with a conversation instead.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which an answer is cut.")] = 512,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of probability that is drawn from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    thinking: Annotated[bool, typer.Option("--thinking", help="Leave the thinking to the model.")] = False,
    tokenizer: Tokenizer = None,
) -> None:
    """Answers one question, or the last turn of a conversation, from a checkpoint."""
    if messages is not None and (image or video or prompt):
        raise ConfigError(
            "--messages", messages, "holds the whole conversation", "leave out --image, --video, --prompt"
        )
    from megatron_glmv.evaluate.generate import main

    main(
        ckpt,
        image=image or (),
        video=video or (),
        prompt=prompt,
        messages=messages,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        thinking=thinking,
        tokenizer=tokenizer,
    )


@app.command()
def sample(
    ckpt: Ckpt,
    data: Annotated[Path, typer.Option(help="Questions with answers, as for eval.")],
    out: Annotated[Path, typer.Option(help="SFT conversations, one a line; media go beside it.")],
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 4,
    keep: Annotated[int, typer.Option(min=1, help="Most right ones of a question that are kept.")] = 1,
    least: Annotated[float, typer.Option(help="Share of right answers that a question needs at least,")] = 0.0,
    most: Annotated[float, typer.Option(help="and at most: 0.9 leaves out what is always right.")] = 1.0,
    mode: Annotated[str, typer.Option(help="think, nothink or answer, as for eval.")] = "think",
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Share of probability that is drawn from.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which an answer is cut.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of each task.")] = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Rejection sampling: a checkpoint's right and well-formed answers to a file of questions, as SFT data."""
    from megatron_glmv.evaluate.rejection import Options, describe, main

    options = Options(
        samples, keep, least, most, temperature, top_p, seed, mode, max_new_tokens=max_new_tokens, limit=limit
    )
    print(describe(main(ckpt, data, out, options, tokenizer), out))


@app.command()
def score(
    ckpt: Ckpt,
    input_: Annotated[Path, typer.Option("--input", help="safetensors of transformers' Glm4v processor's outputs.")],
    out: Annotated[Path, typer.Option(help="safetensors: logprobs [B, S - 1] and more; docs/score.md.")],
    logits: Annotated[bool, typer.Option("--logits", help="Write logits [B, S, V] in fp32 too.")] = False,
    grads: Annotated[Path | None, typer.Option(help="safetensors for the gradient of the mean token NLL.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="parallel.X=N ..., precision=fp32|bf16")] = None,
) -> None:
    """One teacher-forced forward pass (and backward) over given inputs, under any layout: for comparing engines."""
    from megatron_glmv.inference.score import Task, main

    summary = main(Task(ckpt, input_, out, logits=logits, grads=grads), overrides or [])
    if summary:
        print(json.dumps(summary))


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="One or more run directories.")],
    out: Annotated[Path | None, typer.Option(help="File; default RUN_DIR/report.html of the first.")] = None,
) -> None:
    """One self-contained HTML page of a run, or of several side by side."""
    from megatron_glmv.report.page import main

    print(main(run_dirs, out))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Look at nodes of this cluster (conf/cluster) instead.")] = None,
    nodes: Annotated[int, typer.Option(help="How many of them.", min=1)] = 1,
    options: Annotated[list[str] | None, typer.Argument(help="With --cluster: key=value ...")] = None,
) -> None:
    """What is installed, importable and usable, and what stands in for what is missing; or whether nodes are fit."""
    if cluster is not None:
        from megatron_glmv.launch.check import check_cluster

        raise typer.Exit(check_cluster([f"cluster={cluster}", *(options or [])], nodes))
    from megatron_glmv.platform.doctor import main

    raise typer.Exit(main(as_json))


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    overrides: Annotated[
        list[str], typer.Argument(help="experiment=NAME cluster=NAME [key=value ...], or pipeline=NAME.")
    ],
    multirun: Annotated[bool, typer.Option("--multirun", "-m", help="A sweep: one job array.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the call and the script; write and submit nothing.")] = False,
    test_only: Annotated[bool, typer.Option(help="Ask Slurm when it would start.")] = False,
    hold: Annotated[bool, typer.Option(help="Wait for `scontrol release JOB`.")] = False,
    after: Annotated[list[str] | None, typer.Option(help="Job that has to end well first; may be repeated.")] = None,
) -> None:
    """Send a run, a sweep or a pipeline to Slurm. Config and code are frozen now, whenever it starts."""
    from megatron_glmv.cli.submit import main

    main(overrides, multirun=multirun, dry_run=dry_run, test_only=test_only, hold=hold, after=after or [])


@app.command()
def status(
    targets: Annotated[list[str] | None, typer.Argument(help="Run directories, sweeps or job numbers.")] = None,
    watch: Annotated[bool, typer.Option(help="Follow until none is running or waiting.")] = False,
) -> None:
    """State, nodes, step, loss, speed, time left and the last reason of runs, a line each."""
    from megatron_glmv.cli.status import status as show

    show(targets or [], watch=watch)


@app.command()
def logs(
    target: Annotated[str, typer.Argument(help="Run directory or job number.")],
    rank: Annotated[int | None, typer.Option(help="Of this rank; default: the job script's and rank 0's.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Number of the restart; default: the newest.")] = None,
) -> None:
    """What the newest attempt of a run printed."""
    from megatron_glmv.cli.status import logs as show

    show(target, rank, attempt)

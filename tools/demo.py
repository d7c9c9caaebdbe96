"""The main job, end to end, on two cores without a GPU: draws the data, trains a tiny GLM-4.5V, asks it, takes it
through long context and SFT, teaches it to sample what it knows by reinforcement learning, reports.

Runs the commands that a user would, and prints each of them. The first steps are trained by four processes (tensor 2,
pipeline 2, expert 2), the rest by two (data 2) that resume from the checkpoint of the four: all-reduce over gloo costs
most of a step on four ranks of two cores. Long context (context 2) and SFT (pipeline 2 x expert 2) are as many steps as
show that the stage brings something; tools/road.py has the whole of them. Reinforcement learning, on tensor 2, starts
from the first stage's model, tuned a while on partly wrong answers: docs/rlcs.md says why.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

GLMV = str(Path(sys.executable).with_name("glmv"))
DATA, RUN = Path("data_cache/demo"), Path("runs/demo")
SAMPLES, STEPS, FOUR_RANKS = 40_000, 1200, 20
TASKS = ("colour", "count", "position", "chart_highest")
"""What reinforcement learning is about."""
LONG, SFT = (800, 40), (1600, 40)
"""Samples and steps of these stages."""
NOISY_SAMPLES, NOISY_STEPS, RLCS_STEPS = 2_000, 120, 20


def run(title: str, command: list[str]) -> None:
    """Prints and runs `command`; ends this program with its exit code when it fails."""
    shown = shlex.join(["glmv" if part == GLMV else "python" if part == sys.executable else part for part in command])
    print(f"\n== {title}\n$ {shown}", flush=True)
    began = time.monotonic()
    done = subprocess.run(command, check=False, env={"OMP_NUM_THREADS": "1", **os.environ})
    if done.returncode:
        print(f"== {title}: exit code {done.returncode}", file=sys.stderr, flush=True)
        sys.exit(done.returncode)
    print(f"== {title}: {time.monotonic() - began:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="demo set; made when it is not there (%(default)s)")
    parser.add_argument("--run-dir", type=Path, default=RUN, help="continued where it has a checkpoint (%(default)s)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="training samples to draw (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (%(default)s)")
    parser.add_argument("--four-ranks", type=int, default=FOUR_RANKS, help="of them on four processes (%(default)s)")
    parser.add_argument("--limit", type=int, help="questions of each task (default: all, 200)")
    parser.add_argument("--rlcs-steps", type=int, default=RLCS_STEPS, help="0: no reinforcement learning (%(default)s)")
    parser.add_argument("--noisy-steps", type=int, default=NOISY_STEPS, help="that prepare its start (%(default)s)")
    parser.add_argument(
        "--long", type=int, nargs=2, default=LONG, help="samples, steps; steps 0: without (%(default)s)"
    )
    parser.add_argument("--sft", type=int, nargs=2, default=SFT, help="samples, steps (%(default)s)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    train = [
        GLMV, "train", "experiment=tiny_pretrain", f"run_dir={options.run_dir}",
        f"data.path={options.data / 'train'}", f"train.steps={options.steps}", "train.val_every=200",
    ]  # fmt: skip
    make = str(Path(__file__).with_name("make_demo_data.py"))
    ask = [GLMV, "eval", "--ckpt", str(options.run_dir), "--data", str(options.data / "eval" / "eval.jsonl")]
    limit = ["--limit", str(options.limit)] if options.limit else []
    run(
        "the demo set: pictures, clips and text",
        [sys.executable, make, "--out", str(options.data), "--samples", str(options.samples)],
    )
    run(
        "training on four ranks: tensor 2 x pipeline 2 x expert 2",
        [*train, "parallel=tp2_pp2_ep2", f"train.stop_step={options.four_ranks}"],
    )
    run("training on two ranks: data 2, from the four ranks' checkpoint", [*train, "parallel=dp2"])
    run(
        "questions about pictures and clips that were never shown, and with the media exchanged",
        [*ask, "--control", *limit],
    )
    runs = [options.run_dir]
    if options.long[1]:
        runs += go_on(options)
    if options.rlcs_steps:
        runs.append(reinforce(options))
    for made in runs:
        run(f"the report of {made}", [GLMV, "report", str(made)])
    print("\n".join(["", "What each stage brought:", *map(brought, runs)]))
    pages = " and ".join(str(made.resolve() / "report.html") for made in runs)
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. Open {pages}")
    return 0


def go_on(options: argparse.Namespace) -> list[Path]:
    """Long context from the first stage's weights, SFT from its own. Their run directories."""
    before, made = options.run_dir, []
    script = [sys.executable, str(Path(__file__).with_name("make_stage_data.py")), "--demo", str(options.data)]
    sft = ["parallel=pp2_ep2", "data.pack_tokens=3072", "optim.lr=4e-4"]
    for stage, folder, (samples, steps), layout, settings in (
        ("longcontext", "long", options.long, "context 2", ["train.global_batch=1"]),  # packs of four times the tokens
        ("sft", "sft", options.sft, "pipeline 2 x expert 2", sft),
    ):
        run(f"the data of {stage}", [*script, "--stage", folder, "--samples", str(samples), "--held-out", "2"])
        made.append(options.run_dir.with_name(f"{options.run_dir.name}_{stage}"))
        run(f"{stage}, from {before.name}: {layout}", [
            GLMV, "train", f"experiment=tiny_{stage}", f"run_dir={made[-1]}", f"init_from={before}", *settings,
            f"data.path={options.data / folder / 'train'}", f"train.steps={steps}",
            f"train.val_every={max(1, steps // 4)}", "optim.warmup_steps=5",
        ])  # fmt: skip
        before = made[-1]
    return made


def brought(run_dir: Path) -> str:
    """From the first look at held-out data to the last."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = []
    for name in ("val_loss", "heldout_reward", "heldout_greedy"):
        if seen := [line for line in lines if name in line]:
            first, last = seen[0], seen[-1]
            shown.append(f"{name} {first[name]:.3f} (step {first['step']}) -> {last[name]:.3f} (step {last['step']})")
    return f"{run_dir.name}: {', '.join(shown) or 'not looked at'}"


def reinforce(options: argparse.Namespace) -> Path:
    """A model that samples badly what it knows, and RLCS that gives it back. The run directory of the latter."""
    here = Path(__file__)
    noisy, prompts = options.data / "noisy", options.data / "rl"
    start, made = (options.run_dir.with_name(f"{options.run_dir.name}_{name}") for name in ("noisy", "rlcs"))
    tokenizer = f"data.tokenizer={options.data / 'tokenizer'}"
    if not (noisy / "index.json").exists():
        make = [sys.executable, str(here.with_name("make_noisy_set.py")), "--out", str(noisy), "--tasks", *TASKS]
        samples = min(NOISY_SAMPLES, options.samples)
        run("questions of which 60 % have a wrong answer", [*make, "--samples", str(samples)])
    tune = [
        GLMV, "train", "experiment=tiny_pretrain", f"run_dir={start}", f"init_from={options.run_dir}", tokenizer,
        f"data.path={noisy}", "data.val_path=", f"train.steps={options.noisy_steps}", "optim.lr=1e-4",
    ]  # fmt: skip
    run("a start that knows the answer and mostly samples another", tune)
    questions = str(options.data / "eval" / "eval.jsonl")
    split = [sys.executable, str(here.with_name("make_rl_prompts.py")), questions, str(prompts), "--tasks", *TASKS]
    run("prompts and held-out questions", split)
    each = ["rl.heldout_each=40"] if options.limit is None else [f"rl.heldout_each={options.limit}"]
    learn = [
        GLMV, "train", "experiment=tiny_rlcs", f"run_dir={made}", f"init_from={start}", tokenizer, "parallel=tp2",
        f"rl.prompts={prompts / 'prompts.jsonl'}", f"rl.heldout={prompts / 'heldout.jsonl'}",
        f"data.path={options.data / 'train'}", f"train.steps={options.rlcs_steps}", *each,
    ]  # fmt: skip
    run("reinforcement learning with curriculum sampling on two ranks: tensor 2", learn)
    return made


if __name__ == "__main__":
    sys.exit(main())

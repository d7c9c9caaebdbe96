"""The road, small: pre-training, long context, SFT, each from the last on another layout, and what it brought.

For each model: tiny_pretrain on tensor 2 (pictures and text: the paper leaves video out here), tiny_longcontext on
context 2, tiny_sft on pipeline 2 with experts (GLM-4.1V has none: data) spread over two ranks a stage. Then the same
held-out questions are put to the model before and after SFT, with thinking and without. Runs the commands that a user
would; writes road.json and road.md into the run directory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import GLMV, run

HERE = Path(__file__).parent
MODELS = ("tiny_glm45v", "tiny_glm41v")
STAGES = ("pretrain", "longcontext", "sft")
MODES = {"tiny_glm45v": ("think", "nothink"), "tiny_glm41v": ("think", "answer")}
"""GLM-4.1V has no /nothink: its prompt closes the thinking itself."""
SFT_LAYOUT = {"tiny_glm45v": ["parallel=pp2_ep2"], "tiny_glm41v": ["parallel=pp2", "parallel.data=2"]}


@dataclass(frozen=True)
class Plan:
    data: Path
    out: Path
    steps: dict[str, int]
    packs: dict[str, int]
    limit: int

    def run_dir(self, model: str, stage: str) -> Path:
        return self.out / model / stage


def make_data(plan: Plan, samples: int, workers: int) -> None:
    by = ["--workers", str(workers)]
    demo = [sys.executable, str(HERE / "make_demo_data.py"), "--out", str(plan.data)]
    run("the demo set", [*demo, "--samples", str(samples), *by])
    for stage, count in (("long", max(60, samples // 8)), ("sft", max(60, samples * 2 // 5))):
        command = [sys.executable, str(HERE / "make_stage_data.py"), "--demo", str(plan.data), "--stage", stage]
        sizes = ["--samples", str(count), "--pack-tokens", str(plan.packs["longcontext"])]
        run(f"the {stage} set", [*command, *sizes, *by])


def train(plan: Plan, model: str) -> None:
    own = {
        "pretrain": ["parallel=tp2", f"data.path={plan.data / 'train'}", "data.mixture={image:8,text:1}"],
        "longcontext": ["train.global_batch=1", f"data.path={plan.data / 'long' / 'train'}"],
        "sft": [*SFT_LAYOUT[model], f"data.path={plan.data / 'sft' / 'train'}"],
    }
    before = None
    for stage in STAGES:
        steps = plan.steps[stage]
        command = [
            GLMV, "train", f"experiment=tiny_{stage}", f"model={model}", f"run_dir={plan.run_dir(model, stage)}",
            f"train.steps={steps}", f"train.val_every={max(1, steps // 4)}", "train.val_packs=8",
            "checkpoint.best=true", f"data.pack_tokens={plan.packs[stage]}",
            *own[stage], *([f"init_from={before}"] if before else []),
        ]  # fmt: skip
        run(f"{model}: {stage}", command)
        before = plan.run_dir(model, stage)


def ask(plan: Plan, model: str) -> dict[str, dict[str, Any]]:
    """Results of `glmv eval` by mode: before and after SFT."""
    found: dict[str, dict[str, Any]] = {}
    for mode in MODES[model]:
        found[mode] = {}
        for when, stage in (("before", "longcontext"), ("after", "sft")):
            out = plan.out / model / f"{mode}-{when}"
            run(f"{model}: questions {when} SFT, mode {mode}", [
                GLMV, "eval", "--ckpt", str(plan.run_dir(model, stage)), "--mode", mode, "--max-new-tokens", "64",
                "--data", str(plan.data / "eval" / "eval.jsonl"), "--limit", str(plan.limit), "--out", str(out),
            ])  # fmt: skip
            found[mode][when] = json.loads((out / "results.json").read_text())
    return found


def losses(run_dir: Path) -> dict[str, tuple[float, float]]:
    """Validation loss by domain: at the first validation of a stage and at the last."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    seen = [line for line in lines if "val_loss" in line]
    names = sorted(name for name in seen[-1] if name.startswith("val_loss"))
    return {name.removeprefix("val_loss").lstrip("/") or "all": (seen[0][name], seen[-1][name]) for name in names}


def report(model: str, by_stage: dict[str, dict[str, tuple[float, float]]], asked: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    rows = [f"## {model}", "", "| stage | domain | validation loss, first | last | falls |", "|---|---|---:|---:|---|"]
    for stage, domains in by_stage.items():
        for name, (first, last) in domains.items():
            rows.append(f"| {stage} | {name} | {first:.4f} | {last:.4f} | {'yes' if last < first else 'NO'} |")
    head = "".join(f" {mode}, before | after |" for mode in asked)
    rows += ["", "Held-out accuracy above chance, and the form of the replies:", ""]
    rows += [f"| task |{head}", "|---|" + "---:|---:|" * len(asked)]
    columns = [both[when] for both in asked.values() for when in ("before", "after")]
    tasks = sorted(columns[0]["tasks"])
    for task in tasks:
        rows.append("".join([f"| {task} |", *(f" {one['tasks'][task]['above_chance']:.2f} |" for one in columns)]))
    for name in ("one_thought", "empty_thought", "one_box"):
        cells = [f" {one['form'][name]:.1%} |" if "form" in one else " given |" for one in columns]
        rows.append("".join([f"| share with {name.replace('_', ' ')} |", *cells]))
    rows.append("")
    for mode, both in asked.items():
        after = {task: both["after"]["tasks"][task]["above_chance"] for task in tasks}
        rose = [task for task in tasks if after[task] > max(0.0, both["before"]["tasks"][task]["above_chance"])]
        rows.append(f"{mode}: {len(rose)} of {len(tasks)} tasks rose above chance and what was there before")
    return "\n".join([*rows, ""])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data_cache/demo"), help="made if missing (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/road"), help="runs are continued there (%(default)s)")
    parser.add_argument("--model", choices=MODELS, action="append", help="may be repeated; default: both")
    parser.add_argument("--samples", type=int, default=40_000, help="of the demo set (%(default)s)")
    parser.add_argument("--steps", type=int, nargs=3, default=(1200, 150, 800), help="of the stages (%(default)s)")
    parser.add_argument("--pack-tokens", type=int, nargs=3, default=(1536, 6144, 3072), help="(%(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="questions of each task (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="that draw samples; 0: none of their own (%(default)s)")
    options = parser.parse_args(arguments)
    plan = Plan(
        options.data,
        options.out,
        dict(zip(STAGES, options.steps, strict=True)),
        dict(zip(STAGES, options.pack_tokens, strict=True)),
        options.limit,
    )
    began = time.monotonic()
    make_data(plan, options.samples, options.workers)
    everything: dict[str, Any] = {}
    text = []
    for model in options.model or MODELS:
        train(plan, model)
        by_stage = {stage: losses(plan.run_dir(model, stage)) for stage in STAGES}
        asked = ask(plan, model)
        everything[model] = {"val_loss": by_stage, "eval": asked}
        text.append(report(model, by_stage, asked))
        (plan.out / "road.json").write_text(json.dumps(everything, indent=1) + "\n")
        (plan.out / "road.md").write_text("\n".join(text))
    print("\n" + "\n".join(text))
    print(f"Done in {(time.monotonic() - began) / 60:.1f} minutes: {plan.out / 'road.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

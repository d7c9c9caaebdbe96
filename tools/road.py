"""The road, small: pre-training, long context, SFT, each from the last on another layout, and what it brought.

For each model: tiny_pretrain on tensor 2 (pictures and text: the paper leaves video out here), tiny_longcontext on
context 2, tiny_sft on pipeline 2 with experts (GLM-4.1V has none: data) spread over two ranks a stage. Each stage sees
the domains of the paper at their easiest; held-out questions of each, of templates that were never trained, are put to
the model behind every stage, with thinking and without. Runs the commands that a user would, goes on where it was
stopped, and writes road.json and road.md into the run directory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo import GLMV, run

HERE = Path(__file__).parent
MODELS = ("tiny_glm45v", "tiny_glm41v")
STAGES = ("pretrain", "longcontext", "sft")
SETS = dict(zip(STAGES, ("pretrain", "long", "sft"), strict=True))
SHARES = {"pretrain": 7 / 16, "long": 1 / 10, "sft": 9 / 16}
"""Samples of each set for one of the demo set."""
MODES = {"tiny_glm45v": ("think", "nothink"), "tiny_glm41v": ("think", "answer")}
"""GLM-4.1V has no /nothink: its prompt closes the thinking itself."""
GENTLE = ["optim.lr=5e-5", "optim.warmup_steps=5"]
"""A few steps on a model that has learned: 2e-4 lost of the pictures what it gained of documents, 1e-4 of text."""
WINDOW = 64
"""Samples that are packed together. Best fit puts like lengths, so like domains, into a pack: from a window of hundreds
a step of one or two packs sees one domain, and the next one forgets it."""
OWN = {
    "pretrain": {model: ["parallel=tp2"] for model in MODELS},
    "longcontext": {model: ["parallel=cp2", *GENTLE] for model in MODELS},
    "sft": {
        "tiny_glm45v": ["parallel=pp2_ep2", "optim.lr=4e-4"],
        "tiny_glm41v": ["parallel=pp2", "optim.lr=4e-4", "parallel.data=2"],
    },
}
"""The layout of each stage. 4e-4 gives SFT's new form in 600 steps, 2e-4 in more than twice as many."""
QUICK = "parallel=dp2"
"""Where two cores are fastest."""
STEM = "STEM: squares of a figure"
NAMES = {
    "math": STEM,
    "chart": "charts",
    "ocr": "text in images",
    "counting": "counting",
    "spatial": "spatial relations",
    "grounding": "grounding",
    "gui_action": "GUI",
    "html": "code from a page",
    "document": "multi-page documents",
    "video": "short videos",
    "text": "text only",
}
"""The paper's domains by the name of their verifier."""


@dataclass(frozen=True)
class Plan:
    data: Path
    out: Path
    steps: dict[str, int]
    packs: dict[str, int]
    limit: int
    layout_steps: int | None = None
    """Steps on a stage's layout, the rest without model parallelism; None: all."""
    ask: tuple[str, ...] = STAGES
    """Stages behind which the questions are asked; the first and the last of them are compared."""
    start: dict[str, Path] = field(default_factory=dict)
    """What pre-training goes on from, by model."""

    def run_dir(self, model: str, stage: str) -> Path:
        return self.out / model / stage


def make_data(plan: Plan, samples: int, workers: int) -> None:
    by = ["--workers", str(workers)]
    demo = [sys.executable, str(HERE / "make_demo_data.py"), "--out", str(plan.data)]
    if not (plan.data / "tokenizer").is_dir():
        run("the demo set", [*demo, "--samples", str(samples), *by])
    for stage, share in SHARES.items():
        command = [sys.executable, str(HERE / "make_stage_data.py"), "--demo", str(plan.data), "--stage", stage]
        sizes = ["--samples", str(max(60, int(samples * share))), "--pack-tokens", str(plan.packs["longcontext"])]
        run(f"the {stage} set", [*command, *sizes, "--held-out", str(plan.limit), *by])


def train(plan: Plan, model: str) -> None:
    before = plan.start.get(model)
    for stage in STAGES:
        steps = plan.steps[stage]
        command = [
            GLMV, "train", f"experiment=tiny_{stage}", f"model={model}", f"run_dir={plan.run_dir(model, stage)}",
            f"data.path={plan.data / SETS[stage] / 'train'}", f"train.steps={steps}",
            f"train.val_every={max(1, steps // 4)}", "train.val_packs=8",
            "checkpoint.best=true", f"data.pack_tokens={plan.packs[stage]}", f"data.pack_window={WINDOW}",
            *([f"init_from={before}"] if before else []),
        ]  # fmt: skip
        own = OWN[stage][model]
        first = steps if plan.layout_steps is None else min(steps, plan.layout_steps)
        if reached(plan.run_dir(model, stage)) < first:
            run(f"{model}: {stage} on {own[0]}", [*command, *own, f"train.stop_step={first}"])
        if reached(plan.run_dir(model, stage)) < steps:
            run(f"{model}: {stage} from there, {QUICK}", [*command, *own[1:], QUICK])
        before = plan.run_dir(model, stage)


def reached(run_dir: Path) -> int:
    """Step of the newest committed checkpoint; 0 without one."""
    steps = [int(made.parent.name.removeprefix("step_")) for made in run_dir.glob("checkpoints/step_*/manifest.json")]
    return max(steps, default=0)


def ask(plan: Plan, model: str) -> dict[str, dict[str, Any]]:
    """Results of `glmv eval` by mode and stage."""
    found: dict[str, dict[str, Any]] = {}
    questions = plan.data / "held" / "questions.jsonl"
    for mode in MODES[model]:
        found[mode] = {}
        for stage in plan.ask:
            out = plan.run_dir(model, stage) / "eval" / f"held-{mode}"
            known = _results(out)
            if known is None or known["step"] != plan.steps[stage] or known["data"] != str(questions.resolve()):
                run(f"{model}: questions behind {stage}, mode {mode}", [
                    GLMV, "eval", "--ckpt", str(plan.run_dir(model, stage)), "--mode", mode, "--max-new-tokens", "160",
                    "--data", str(questions), "--out", str(out),
                ])  # fmt: skip
            found[mode][stage] = _results(out)
    return found


def _results(out: Path) -> Any:
    path = out / "results.json"
    return json.loads(path.read_text()) if path.is_file() else None


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
    head = "".join(f" {mode}: {stage} |" for mode, behind in asked.items() for stage in behind)
    columns = [one for behind in asked.values() for one in behind.values()]
    rows += ["", "Held-out accuracy above chance behind each stage, and the form of the replies:", ""]
    rows += [f"| domain |{head} risen |", "|---|" + "---:|" * len(columns) + "---|"]
    risen = [domain for domain in NAMES if all(_rose(behind, domain) for behind in asked.values())]
    for domain, title in NAMES.items():
        cells = "".join(f" {one['domains'][domain]['above_chance']:.2f} |" for one in columns)
        rows.append(f"| {title} |{cells} {'yes' if domain in risen else 'NO'} |")
    for name in ("one_thought", "empty_thought", "one_box"):
        cells = "".join(f" {one['form'][name]:.1%} |" if "form" in one else " given |" for one in columns)
        rows.append(f"| replies with {name.replace('_', ' ')} |{cells} |")
    asked_in_all, (began, *_, ended) = columns[0]["overall"]["n"], next(iter(asked.values()))
    rows += ["", f"{len(risen)} of {len(NAMES)} domains rose from {began} to {ended}, to above chance,"]
    rows[-1] += f" in both {' and '.join(asked)} ({asked_in_all} questions)."
    return "\n".join([*rows, ""])


def _rose(behind: dict[str, Any], domain: str) -> bool:
    """From behind the first stage to behind the last; not where that is below chance."""
    scores = [one["domains"][domain]["above_chance"] for one in behind.values()]
    return bool(scores[-1] > max(0.0, scores[0]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data_cache/demo"), help="made if missing (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/road"), help="runs are continued there (%(default)s)")
    parser.add_argument("--model", choices=MODELS, action="append", help="may be repeated; default: both")
    parser.add_argument(
        "--start", metavar="MODEL=RUN", action="append", default=[],
        help="a run that pre-training goes on from, such as tiny_glm45v=runs/demo; may be repeated",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=40_000, help="of the demo set (%(default)s)")
    parser.add_argument("--steps", type=int, nargs=3, default=(1200, 60, 1200), help="of the stages (%(default)s)")
    parser.add_argument("--pack-tokens", type=int, nargs=3, default=(1536, 6144, 1536), help="(%(default)s)")
    parser.add_argument(
        "--layout-steps", type=int,
        help="steps of each stage on its layout; the rest from there without model parallelism, faster on two cores",
    )  # fmt: skip
    parser.add_argument(
        "--ask", choices=STAGES, nargs="+", default=STAGES, help="stages behind which questions are asked (all)"
    )
    parser.add_argument("--limit", type=int, default=100, help="questions of each domain (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="that draw samples; 0: none of their own (%(default)s)")
    options = parser.parse_args(arguments)
    plan = Plan(
        options.data,
        options.out,
        dict(zip(STAGES, options.steps, strict=True)),
        dict(zip(STAGES, options.pack_tokens, strict=True)),
        options.limit,
        options.layout_steps,
        tuple(stage for stage in STAGES if stage in options.ask),
        {model: Path(start) for model, _, start in (one.partition("=") for one in options.start)},
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
        run(f"{model}: the report", [
            GLMV, "report", *(str(plan.run_dir(model, stage)) for stage in STAGES),
            "--out", str(plan.out / f"{model}.html"),
        ])  # fmt: skip
        (plan.out / "road.json").write_text(json.dumps(everything, indent=1) + "\n")
        (plan.out / "road.md").write_text("\n".join(text))
    print("\n" + "\n".join(text))
    print(f"Done in {(time.monotonic() - began) / 60:.1f} minutes: {plan.out / 'road.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

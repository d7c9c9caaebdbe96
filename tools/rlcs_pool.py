"""A pool of prompts of a fixed composition, picked by what a model can do with them: for tools/rlcs_study.py.

    python tools/rlcs_pool.py --start runs/start --tokenizer data_cache/demo/tokenizer --out runs/study/pool

Scenes of the demo's families (a seed of their own: none was trained on) and sums of two-digit numbers, of which the
demo's models know nothing, are asked about, and the start model answers each question --answers times. Written are
graded.jsonl (every question's pass rate) and, with --size prompts,

    pool.jsonl      60 % trivial (all right), 17 % useful (some right; of tasks it is unsure of), 23 % out of reach
    heldout.jsonl   questions of the useful tasks about other scenes, whatever their pass rate
    pool.json       how it was made: shares, tasks of each class, pass rates

The shares are those of arXiv 2507.01006's "over half of all prompts achieve accuracy over 90 %". All prompts are of one
domain, so that sampling without a curriculum meets the classes in these shares.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import Config
from megatron_glmv.data.synthetic.conversation import make_sample
from megatron_glmv.data.synthetic.heldout import FILE, write_eval
from megatron_glmv.data.synthetic.registry import FAMILIES
from megatron_glmv.data.synthetic.seeds import EVAL
from megatron_glmv.evaluate.dataset import with_absolute_media
from megatron_glmv.parallel.launch import RankContext, launch

SHARES = {"trivial": 0.60, "useful": 0.17, "out of reach": 0.23}
SCENES = ("still", "chart")
TRIVIAL, USEFUL, BEYOND = ("colour", "digit"), ("count", "position", "chart_highest"), "large_sum"
"""What is asked: tasks that the start model knows, that it was made unsure of, and that it never saw."""
PRELOAD = ("megatron_glmv.stages.preload", "megatron_glmv.stages.rlcs")


def class_of(rate: float) -> str:
    """By the share of right answers: all, none, or some."""
    return "trivial" if rate == 1.0 else "out of reach" if rate == 0.0 else "useful"


def pick(graded: Sequence[dict[str, Any]], useful: Sequence[str], size: int, seed: int) -> list[dict[str, Any]]:
    """`size` questions in the shares of SHARES, each with its `class`. Questions of tasks not in `useful` that are
    sometimes right are guesses, and left out. Raises SystemExit where a class has too few."""
    kinds: dict[str, list[dict[str, Any]]] = {name: [] for name in SHARES}
    for line in graded:
        name = class_of(line["rate"])
        if name != "useful" or line["task"] in useful:
            kinds[name].append(line)
    rng = np.random.default_rng(seed)
    chosen: list[dict[str, Any]] = []
    for name, share in SHARES.items():
        wanted, there = round(share * size), kinds[name]
        if len(there) < wanted:
            raise SystemExit(
                f"rlcs_pool: {wanted} prompts have to be {name}, {len(there)} are; ask about more --scenes"
            )
        chosen += [{**there[i], "class": name} for i in sorted(rng.permutation(len(there))[:wanted])]
    return chosen


def questions(out: Path, scenes: int, seed: int) -> list[dict[str, Any]]:
    """Lines of questions, `scenes` of each task; media go to `out`."""
    write_eval(out, (make_sample(FAMILIES[name], seed, EVAL, i) for name in SCENES for i in range(scenes)))
    lines = [json.loads(line) for line in (out / FILE).read_text(encoding="utf-8").splitlines()]
    asked = [line for line in lines if line["task"] in (*TRIVIAL, *USEFUL)]
    for line in asked:
        line["messages"] = with_absolute_media(line["messages"], out)
    rng = np.random.default_rng(seed)
    for i in range(scenes):
        a, b = (int(n) for n in rng.integers(10, 50, 2))
        message = {"role": "user", "content": [{"type": "text", "text": f"what is {a} + {b}?"}]}
        asked.append({"id": f"sum-{i:07d}-{BEYOND}", "task": BEYOND, "answer": str(a + b), "messages": [message]})
    return [{**line, "domain": "demo", "verifier": "exact"} for line in asked]


def study_config(out: Path, start: Path, tokenizer: Path, overrides: Sequence[str] = ()) -> Config:
    """tiny_rlcs on the pool in `out`."""
    own = [f"rl.prompts={out / 'pool.jsonl'}", f"rl.heldout={out / 'heldout.jsonl'}", "rl.heldout_each=1000"]
    places = [f"init_from={start}", f"data.tokenizer={tokenizer}", "data.path=", "data.val_path="]
    return compose(["experiment=tiny_rlcs", *places, *own, *overrides])


def grade(config: Config, answers: int, context: RankContext) -> list[tuple[str, float]]:
    """(id, share of right answers) of every prompt, by the model that `init_from` names."""
    from megatron_glmv.resilience.signals import StopRequest
    from megatron_glmv.resilience.watchdog import Watchdog
    from megatron_glmv.rl.rewards.registry import Judge
    from megatron_glmv.rl.state import RLState
    from megatron_glmv.stages.parts import build_trainer, make_checkpoints
    from megatron_glmv.stages.rlcs import assemble, find_tokenizer
    from megatron_glmv.stages.session import open_session

    with open_session(config, context) as session, Judge() as judge:
        tokenizer = find_tokenizer(config, Path())
        trainer = build_trainer(config, session)
        checkpoints = make_checkpoints(config, session, tokenizer, Path())
        checkpoints.load_weights(Path(config.init_from), trainer.chunks, trainer.optimizer)
        watchdog = Watchdog(config.watchdog_s, 0)
        parts = assemble(
            config, session, trainer, tokenizer, judge, RLState(), lambda state: None, StopRequest(), watchdog
        )
        parts.sync()
        groups = parts.roller.roll(list(parts.prompts.values()), 0, answers)
        return [(group.prompt, group.mean_reward) for group in groups]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="run directory or checkpoint")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=320, help="of each family")
    parser.add_argument("--answers", type=int, default=16, help="to each question, when it is graded")
    parser.add_argument("--size", type=int, default=600, help="prompts of the pool")
    parser.add_argument("--heldout", type=int, default=32, help="held-out questions of each useful task")
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    out: Path = given.out.resolve()
    lines = questions(out, given.scenes, given.seed)
    last = given.scenes - given.heldout  # scenes from here on are asked in the held-out set alone
    is_late = [int(line["id"].split("-")[1]) >= last for line in lines]
    write(out / "heldout.jsonl", [x for x, late in zip(lines, is_late, strict=True) if late and x["task"] in USEFUL])
    write(out / "pool.jsonl", [x for x, late in zip(lines, is_late, strict=True) if not late])
    config = study_config(out, given.start.resolve(), given.tokenizer.resolve())
    (rates,) = launch(partial(grade, config, given.answers), 1, preload=PRELOAD)
    by_id = {line["id"]: line for line in lines}
    graded = [{**by_id[id], "rate": rate} for id, rate in rates]
    write(out / "graded.jsonl", [{"id": x["id"], "task": x["task"], "rate": x["rate"]} for x in graded])
    for task in sorted({x["task"] for x in graded}):
        of_task = [x["rate"] for x in graded if x["task"] == task]
        kinds = Counter(map(class_of, of_task))
        print(f"{task:15} mean {np.mean(of_task):.2f}  " + "  ".join(f"{kinds[name]} {name}" for name in SHARES))

    chosen = pick(graded, USEFUL, given.size, given.seed)
    hidden = ("class", "rate")  # nothing of the grading goes to those who are compared
    write(out / "pool.jsonl", [{k: v for k, v in line.items() if k not in hidden} for line in chosen])
    tasks = {name: Counter(x["task"] for x in chosen if x["class"] == name) for name in SHARES}
    useful = [x["rate"] for x in chosen if x["class"] == "useful"]
    about = {
        "start": str(given.start),
        "prompts": len(chosen),
        "answers_graded": given.answers,
        "shares": SHARES,
        "tasks": tasks,
        "useful_rate": {"mean": float(np.mean(useful)), "quartiles": np.percentile(useful, [25, 50, 75]).tolist()},
        "class_of": {x["id"]: x["class"] for x in chosen},
        "heldout": sum(1 for line in (out / "heldout.jsonl").open()),
        "seed": given.seed,
    }
    (out / "pool.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in about.items() if k != "class_of"}))


def write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()

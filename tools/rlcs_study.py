"""Uniform sampling, DAPO's refilling and RLCS from one checkpoint on one pool: rollouts to a target held-out reward.

    python tools/rlcs_pool.py --start runs/start --tokenizer data_cache/demo/tokenizer --out runs/study/pool
    python tools/rlcs_study.py --pool runs/study/pool --start runs/start --tokenizer data_cache/demo/tokenizer \\
        --out runs/study/runs

Every run is a process of its own that runs the loop of `stage=rlcs` until the mean of two neighbouring evaluations
reaches --target, or for --minutes (of CPU time) or --rollouts. Its result is one JSON file; one that exists is not made
again, so that
a study that was stopped goes on where it was. `--only NAMES` runs some arms, `--report` only tells of what is there.

A method is compared at the learning rate, of --rates, where it needs the fewest rollouts. Rollouts are all that were
generated for training, discarded ones too; those that graded the pool beforehand are counted in and apart.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from rlcs_pool import PRELOAD, study_config
from rlcs_tables import show, write_all

from megatron_glmv.data.types import Json
from megatron_glmv.parallel.launch import RankContext, RankFailed, launch

UNIFORM = ("rl.curriculum.enabled=false", "rl.curriculum.grade=0")
CURRICULUM = ("rl.curriculum.enabled=true",)

ARMS: dict[str, tuple[str, ...]] = {
    "uniform": (*UNIFORM, "rl.expansion.reading=none"),
    "dapo": (*UNIFORM, "rl.expansion.reading=refill"),
    "rlcs": (*CURRICULUM, "rl.expansion.reading=budget"),
    "rlcs rollouts": (*CURRICULUM, "rl.expansion.reading=rollouts"),
    "curriculum only": (*CURRICULUM, "rl.expansion.reading=none"),
    "expansion only": (*UNIFORM, "rl.expansion.reading=rollouts"),
    "expansion only, budget": (*UNIFORM, "rl.expansion.reading=budget"),
    "rlcs, token mean": (*CURRICULUM, "rl.expansion.reading=budget", "rl.loss_mean=token"),
    "random rewards": (*CURRICULUM, "rl.expansion.reading=budget", "rl.random_rewards=true"),
    "thinking": (*CURRICULUM, "rl.expansion.reading=budget", "rl.thinking=true"),
    "thinking, forced": (*CURRICULUM, "rl.expansion.reading=budget", "rl.thinking=true", "rl.thinking_budget=8"),
}
"""What distinguishes each from the others; `rlcs` is the reading that keeps the rollouts fixed, as conf/rl has it."""
COMPARED = ("uniform", "dapo", "rlcs", "rlcs rollouts")
"""Run at every rate; the others at the best one of `rlcs`, those without a curriculum at that of `uniform`."""
THINKING = ("thinking", "thinking, forced")
"""Only with `--only`: they need a start that thinks, and `--set rl.max_new_tokens=N`, N shorter than its thoughts."""
FIXED = ("random rewards", *THINKING)
"""Have no target: they run for --control steps."""
COMPOSING = Lock()
"""Hydra composes one configuration at a time."""


@dataclass(frozen=True)
class Spec:
    """One run."""

    arm: str
    rate: float
    seed: int
    target: float | None
    steps: int
    most_rollouts: int
    seconds: float
    """Of CPU time: a busy machine must not end a run earlier."""

    @property
    def file(self) -> str:
        return f"{self.arm.replace(', ', '-').replace(' ', '-')}_lr{self.rate:g}_seed{self.seed}.json"


class Course:
    """The recorder of a run (train/metrics.py's `step`), which ends it too: the loop asks `bool` after each step."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.records, self.reached = spec, list[Json](), False

    def step(self, record: Json) -> None:
        self.records.append(record)
        points = [line["heldout_reward"] for line in self.records if "heldout_reward" in line]
        if self.spec.target is not None and "heldout_reward" in record and len(points) > 1:
            self.reached = (points[-1] + points[-2]) / 2 >= self.spec.target

    def __bool__(self) -> bool:
        late = time.process_time() > self.spec.seconds
        spent = bool(self.records) and self.records[-1]["rollouts"] >= self.spec.most_rollouts
        return self.reached or late or spent

    def result(self, cpu_seconds: float) -> Json:
        last = self.records[-1]
        keys = ("step", "rollouts", "heldout_reward", "heldout_greedy", "rollouts_heldout")
        mean = {key: _mean(self.records, key) for key in MEANS}
        return {
            **vars(self.spec),
            "reached": self.reached,
            "rollouts": last["rollouts"],
            "graded": last["rollouts_graded"],
            "steps": last["step"],
            "updates": int(sum(line.get("updates", 0) for line in self.records)),
            "cpu_s": round(cpu_seconds, 1),
            "course": [{key: line[key] for key in keys} for line in self.records if "heldout_reward" in line],
            "mean": mean,
            "last_entropy": last.get("entropy"),
        }


MEANS = ("reward_mean", "valid_groups", "entropy", "forced_answers", "cut_answers", "answer_tokens")


def _mean(records: Sequence[Json], key: str) -> float | None:
    values = [line[key] for line in records if key in line]
    return sum(values) / len(values) if values else None


def remember_pixels(files: Any) -> None:
    """Files are decoded once in a run, by Pillow: a third of a short run would be decoding and DALI's start."""
    known: dict[str, Any] = {}
    decode = files.decode
    files._decoder._backends = ()

    def once(media: Sequence[Any]) -> list[Any]:
        missing = {m.key: m for m in media if m.key not in known}
        known.update(zip(missing, decode(list(missing.values())) if missing else (), strict=True))
        return [known[m.key] for m in media]

    files.decode = once


def run_one(config: Any, spec: Spec, context: RankContext) -> Json:
    """In a process of its own: the loop of the stage, with a recorder that ends it at the target."""
    from dataclasses import replace

    from megatron_glmv.resilience.watchdog import Watchdog
    from megatron_glmv.rl.loop import train
    from megatron_glmv.rl.rewards.registry import Judge
    from megatron_glmv.rl.state import RLState
    from megatron_glmv.stages.parts import build_trainer, make_checkpoints
    from megatron_glmv.stages.rlcs import assemble, find_tokenizer
    from megatron_glmv.stages.session import open_session

    course: Any = Course(spec)
    with open_session(config, context) as session, Judge() as judge:
        tokenizer = find_tokenizer(config, Path())
        trainer = build_trainer(config, session)
        checkpoints = make_checkpoints(config, session, tokenizer, Path())
        checkpoints.load_weights(Path(config.init_from), trainer.chunks, trainer.optimizer)
        state = RLState()
        watchdog = Watchdog(config.watchdog_s, 0)
        parts = assemble(config, session, trainer, tokenizer, judge, state, lambda at: None, course, watchdog)
        remember_pixels(parts.roller.builder.files)
        train(replace(parts, recorder=course), state)
        made: Json = course.result(time.process_time())
        return made


def overrides(spec: Spec, given: argparse.Namespace) -> list[str]:
    own = [f"optim.lr={spec.rate}", f"optim.min_lr={spec.rate}", f"train.seed={spec.seed}", f"train.steps={spec.steps}"]
    sizes = [f"rl.groups={given.groups}", f"rl.curriculum.grade={given.grade}", f"rl.heldout_every={given.every}"]
    fixed = [f"rl.heldout_samples={given.samples}", "rl.verify_weights_every=0", "rl.log_groups=false"]
    return [*own, *sizes, *fixed, *ARMS[spec.arm], *given.set]


def make(spec: Spec, given: argparse.Namespace) -> Json:
    """The result of a run, from its file where it has one."""
    path = given.out / spec.file
    if path.exists():
        found: Json = json.loads(path.read_text(encoding="utf-8"))
        return found
    with COMPOSING:
        config = study_config(given.pool, given.start, given.tokenizer, overrides(spec, given))
    try:
        (result,) = launch(partial(run_one, config, spec), 1, preload=PRELOAD)
    except RankFailed as error:  # a rate at which it diverges is a result
        result = {**vars(spec), "reached": False, "error": str(error)[-400:], "course": [], "steps": 0, "updates": 0}
        result |= {"rollouts": given.rollouts, "graded": 0}
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(result) + "\n", encoding="utf-8")
    part.replace(path)
    end = result["course"][-1]["heldout_reward"] if result["course"] else float("nan")
    print(f"{spec.file:48} reached {result['reached']!s:5} {result['rollouts']:6,} rollouts {result['steps']:4} steps "
          f"held out {end:.3f}  {result.get('cpu_s', 0):5.1f} CPU s", flush=True)  # fmt: skip
    return result


def plan(given: argparse.Namespace, done: Sequence[Json] | None) -> list[Spec]:
    """The runs of the methods that are compared; with their results `done`, those of the other arms."""

    def spec(arm: str, rate: float, seed: int) -> Spec:
        target, steps = (None, given.control) if arm in FIXED else (given.target, 100_000)
        return Spec(arm, rate, seed, target, steps, given.rollouts, given.minutes * 60.0)

    seeds = range(1, given.seeds + 1)
    if done is None:  # all methods seed by seed: a study that is stopped early has as many of each
        return [spec(arm, rate, seed) for seed in seeds for rate in given.rates for arm in COMPARED]
    best = {arm: best_rate([line for line in done if line["arm"] == arm], given.rates[0]) for arm in COMPARED}
    others = [arm for arm in ARMS if arm not in COMPARED and (given.only or arm not in THINKING)]
    return [
        spec(arm, best["uniform"] if ARMS[arm][0] == UNIFORM[0] else best["rlcs"], seed)
        for seed in seeds
        for arm in others
    ]


def best_rate(results: Sequence[Json], default: float) -> float:
    """Where most seeds reach the target, and of such rates the one with the fewest rollouts; without results
    `default`."""
    rates = sorted({line["rate"] for line in results})

    def key(rate: float) -> tuple[int, float]:
        of_rate = [line for line in results if line["rate"] == rate]
        return -sum(line["reached"] for line in of_rate), sum(line["rollouts"] for line in of_rate) / len(of_rate)

    return min(rates, key=key, default=default)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pool", "start", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=[6e-5, 1.2e-4])
    parser.add_argument("--target", type=float, default=0.6, help="held-out reward to reach, chosen beforehand")
    parser.add_argument("--minutes", type=float, default=3.0, help="CPU minutes, most of a run")
    parser.add_argument("--rollouts", type=int, default=12_000, help="most of a run")
    parser.add_argument("--control", type=int, default=30, help="steps of the run with random rewards")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", nargs="+", choices=list(ARMS), help="arms to run")
    parser.add_argument("--groups", type=int, default=16, help="prompts of an iteration")
    parser.add_argument("--grade", type=int, default=8, help="prompts of each task that RLCS grades beforehand")
    parser.add_argument("--every", type=int, default=2, help="steps between evaluations")
    parser.add_argument("--samples", type=int, default=2, help="answers to each held-out question")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further options of every run")
    parser.add_argument("--report", action="store_true", help="run nothing, tell of what is there")
    given = parser.parse_args()
    for name in ("pool", "start", "tokenizer", "out"):
        setattr(given, name, getattr(given, name).resolve())
    given.out.mkdir(parents=True, exist_ok=True)
    if not given.report:
        compared = _all(plan(given, None), given)
        _all(plan(given, compared), given)
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(given.out.glob("*_seed*.json"))]
    show(results, COMPARED)
    print(", ".join(str(path) for path in write_all(results, COMPARED, given.out)))


def _all(specs: Sequence[Spec], given: argparse.Namespace) -> list[Json]:
    wanted = [
        spec for spec in specs if given.only is None or spec.arm in given.only or (given.out / spec.file).exists()
    ]
    with ThreadPoolExecutor(given.jobs) as threads:
        return list(threads.map(lambda spec: make(spec, given), wanted))


if __name__ == "__main__":
    main()

"""The loop of RLCS: draw, roll out, judge, grade, choose, learn, hand the weights back to the engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from megatron_glmv.config.schema import Config
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.types import Json
from megatron_glmv.parallel.groups import device_sum
from megatron_glmv.resilience.signals import StopRequest
from megatron_glmv.resilience.watchdog import Watchdog
from megatron_glmv.rl import observe
from megatron_glmv.rl.advantage import valid
from megatron_glmv.rl.ahead import InBackground, Rolled, check_age
from megatron_glmv.rl.curriculum import Cell, Curriculum
from megatron_glmv.rl.expansion import expansion_ratio, most_balanced, plan
from megatron_glmv.rl.group import Group
from megatron_glmv.rl.learner import Learner
from megatron_glmv.rl.prompts import RLPrompt
from megatron_glmv.rl.rolling import Roller, held_out
from megatron_glmv.rl.state import RLState
from megatron_glmv.train.loop import Ending
from megatron_glmv.train.metrics import Recorder
from megatron_glmv.train.optimizer import set_learning_rate
from megatron_glmv.train.schedule import learning_rate


@dataclass(frozen=True)
class RLParts:
    """What the stage builds and the loop runs."""

    config: Config
    prompts: dict[str, RLPrompt]
    heldout: Sequence[RLPrompt]
    curriculum: Curriculum
    roller: Roller
    learner: Learner
    sync: Callable[[], None]
    """Gives the engine the trained weights."""
    verify: Callable[[], None]
    """Raises where it doesn't have them."""
    save: Callable[[RLState], None]
    stop: StopRequest
    watchdog: Watchdog
    recorder: Recorder | None = None
    """On the recording rank only."""
    groups_file: Path | None = None
    health_file: Path | None = None


def train(parts: RLParts, state: RLState) -> Ending:
    """Runs from `state.step` as train/loop.py does. Equal on every rank."""
    settings = parts.config.train
    last = min(settings.steps, settings.stop_step or settings.steps)
    parts.sync()
    parts.verify()
    if state.step == 0:
        _begin(parts, state)
    background = InBackground()
    try:
        return _steps(parts, state, last, background)
    finally:
        background.close()
        parts.roller.close()


def _steps(parts: RLParts, state: RLState, last: int, background: InBackground) -> Ending:
    settings, rl, every = parts.config.train, parts.config.rl, parts.config.checkpoint.every
    ending = Ending("finished" if last == settings.steps else f"stop_step {last}")
    while state.step < last:
        started = time.perf_counter()
        step = state.step + 1
        rate = learning_rate(step, settings.steps, parts.config.optim)
        set_learning_rate(parts.learner.trainer.optimizer, rate)
        parts.watchdog.beat(f"the rollouts of step {step}")
        record = _iteration(parts, state, step, rate, background)
        parts.watchdog.settled()
        parts.watchdog.beat(f"what follows step {step}: weights, evaluation, records, checkpoint")
        parts.sync()
        if rl.verify_weights_every and step % rl.verify_weights_every == 0:
            parts.verify()
        state.step = step
        state.curriculum = parts.curriculum.state()
        looked_at = step == last or (rl.heldout_every and step % rl.heldout_every == 0)
        if looked_at:
            record |= _evaluate(parts, state)
        record["step_time_s"] = time.perf_counter() - started
        if parts.recorder is not None:
            parts.recorder.step(record)
        if looked_at:
            _tell_health(parts)
        (stopping,) = device_sum([float(bool(parts.stop))], None, parts.learner.trainer.device)
        if step == last or stopping or (every and step % every == 0):
            parts.save(state)
        if stopping and step < last:
            return Ending(f"stop requested by signal, saved step {step}", requeue=True)
    return ending


def _begin(parts: RLParts, state: RLState) -> None:
    """Grades the pool's sample, and evaluates what training starts from: the line of step 0."""
    started = time.perf_counter()
    ids = parts.curriculum.to_grade()
    each = parts.config.rl.group_size
    graded = [g for g in parts.roller.roll([parts.prompts[id] for id in ids], state.rollouts, each) if g.rewards]
    cells = [parts.curriculum.cell(group.prompt) for group in graded]
    for group in graded:
        parts.curriculum.record(group.prompt, group.rewards)
    if graded:
        _log_groups(parts, {"step": 0, "groups": observe.graded(graded, cells)})
    state.rollouts += len(ids) * each
    state.graded = state.rollouts
    record: Json = {"step": 0, "tokens": 0, "samples": 0}
    record |= {"rollouts": state.rollouts, "rollouts_graded": state.graded, **_evaluate(parts, state)}
    record |= {f"tier/{i}": count for i, count in enumerate(parts.curriculum.occupancy())}
    record |= {"step_time_s": time.perf_counter() - started, "data_wait_s": 0.0}
    if parts.recorder is not None:
        parts.recorder.step(record)


def _evaluate(parts: RLParts, state: RLState) -> Json:
    if not parts.heldout:
        return {}
    samples = parts.config.rl.heldout_samples
    state.evaluated += len(parts.heldout) * (samples + 1)
    return {**held_out(parts.roller, parts.heldout, samples), "rollouts_heldout": state.evaluated}


def _iteration(parts: RLParts, state: RLState, step: int, rate: float, background: InBackground) -> Json:
    """One iteration's record, all but its whole time. With `rl.staleness` the next one is rolled out meanwhile."""
    rl, curriculum = parts.config.rl, parts.curriculum
    began = time.perf_counter()
    rolled = Rolled.from_json(state.pending) if state.pending else _roll(parts, state, step)
    state.pending = None
    check_age(rolled, rl.staleness)
    groups, applied = list(rolled.groups), rolled.applied
    drawn = [curriculum.cell(group.prompt) for group in groups]
    for group in groups:
        curriculum.record(group.prompt, group.rewards)
    observed = expansion_ratio(sum(valid(g.rewards) for g in groups), len(groups), rl.expansion.cap)
    state.ratio = rl.expansion.ema * state.ratio + (1 - rl.expansion.ema) * observed
    kept = _kept(groups, rolled.trained, rl.expansion.reading)
    rollouts, waited = state.rollouts, time.perf_counter() - began
    finish = _roll_ahead(parts, state, step + 1, background) if _goes_ahead(parts, step) else None
    learned = parts.learner.learn([groups[i] for i in kept], stale=rolled.staleness > 0)
    began = time.perf_counter()
    state.pending = finish().to_json() if finish else None
    waited += time.perf_counter() - began
    state.tokens += learned["trained_tokens"]
    state.samples += len(kept) * rl.group_size
    ratio = {"ratio_applied": applied, "ratio_observed": observed, "expansion_ratio": state.ratio}
    _log_groups(parts, observe.line(step, groups, drawn, kept, rolled.weights, ratio))
    return {
        "step": step,
        **learned,
        "lr": rate,
        "tokens": state.tokens,
        "samples": state.samples,
        "rollouts": rollouts,
        "rollouts_graded": state.graded,
        "staleness": rolled.staleness,
        "groups_rolled": len(groups),
        "groups_trained": len(kept),
        **ratio,
        **observe.describe(groups, rolled.failed),
        **observe.tiers(curriculum, rolled.before, drawn),
        "data_wait_s": waited,
    }


def _kept(groups: Sequence[Group], count: int, reading: str) -> list[int]:
    if reading == "none":
        return list(range(len(groups)))
    if reading == "refill":
        return [i for i, group in enumerate(groups) if valid(group.rewards)][:count]
    return most_balanced([group.rewards for group in groups], count)


@dataclass(frozen=True)
class _Draw:
    """What an iteration is drawn by."""

    before: tuple[int, ...]
    weights: dict[Cell, float]
    applied: float
    rolled: int
    trained: int


def _draw(parts: RLParts, state: RLState) -> _Draw:
    rl, curriculum = parts.config.rl, parts.curriculum
    hopeless = curriculum.best_valid_share() < rl.expansion.least_valid
    applied = 1.0 if hopeless else state.ratio
    chosen = plan(rl.groups, applied, rl.expansion.reading)
    before = tuple(curriculum.occupancy())
    return _Draw(before, curriculum.weights(rl.groups), applied, chosen.rolled, chosen.trained)


def _roll(parts: RLParts, state: RLState, step: int) -> Rolled:
    """The groups of an iteration. With `refill`, draws on until `rl.groups` groups are valid, the pool is used up or
    the batches are. Raises DataError where no prompt at all could be used."""
    rl, draw = parts.config.rl, _draw(parts, state)
    batches = rl.expansion.refill_batches if rl.expansion.reading == "refill" else 1
    asked: list[str] = []
    groups: list[Group] = []
    for part in range(batches):
        ids = parts.curriculum.draw(step, draw.rolled, part, asked)
        asked += ids
        groups += parts.roller.roll([parts.prompts[id] for id in ids], state.rollouts, rl.group_size)
        state.rollouts += len(ids) * rl.group_size
        if not ids or sum(valid(group.rewards) for group in groups if group.rewards) >= rl.groups:
            break
    return _usable(parts, step, step - 1, draw, groups)


def _goes_ahead(parts: RLParts, step: int) -> bool:
    """Whether another iteration follows, in this attempt or (`stop_step`) a later one."""
    return parts.config.rl.staleness > 0 and step < parts.config.train.steps


def _roll_ahead(parts: RLParts, state: RLState, step: int, background: InBackground) -> Callable[[], Rolled]:
    """Starts the rollouts of `step` while the step before it is trained: with the weights of two steps before. What is
    returned waits for them, and is collective."""
    draw, each = _draw(parts, state), parts.config.rl.group_size
    prompts = [parts.prompts[id] for id in parts.curriculum.draw(step, draw.rolled, 0, [])]
    first = state.rollouts
    state.rollouts += len(prompts) * each
    background.start(lambda: parts.roller.mine(prompts, first, each))

    def finish() -> Rolled:
        return _usable(parts, step, step - 2, draw, parts.roller.gather(background.result(), len(prompts)))

    return finish


def _usable(parts: RLParts, step: int, version: int, draw: _Draw, groups: list[Group]) -> Rolled:
    usable = tuple(group for group in groups if group.rewards)
    if not usable:
        first = groups[0].error if groups else "the pool is empty"
        prompts = parts.config.rl.prompts
        raise DataError(prompts, f"none of the {len(groups)} prompts of step {step} could be used: {first}")
    failed = len(groups) - len(usable)
    return Rolled(step, version, usable, failed, draw.before, draw.weights, draw.applied, draw.trained)


def _log_groups(parts: RLParts, line: Json) -> None:
    if parts.groups_file is not None and dist.get_rank() == 0:
        with parts.groups_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _tell_health(parts: RLParts) -> None:
    """What the recording rank's verifiers look like, and what is wrong with them in words. Counted since the attempt
    began: no state, and not the same in two equal runs (there are times in it)."""
    if parts.recorder is None or parts.health_file is None:
        return
    health = parts.roller.judge.health
    for warning in health.warnings():
        parts.recorder.note(f"verifier {warning}")
    part = parts.health_file.with_suffix(".tmp")
    part.write_text(json.dumps(health.summary(), indent=1) + "\n", encoding="utf-8")
    part.replace(parts.health_file)

"""The main loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from megatron_glmv.config.schema import Config
from megatron_glmv.data.types import Json
from megatron_glmv.resilience.signals import StopRequest
from megatron_glmv.resilience.watchdog import Watchdog
from megatron_glmv.train.feed import Feed
from megatron_glmv.train.metrics import Recorder
from megatron_glmv.train.optimizer import set_learning_rate
from megatron_glmv.train.schedule import learning_rate
from megatron_glmv.train.state import TrainState
from megatron_glmv.train.step import StepResult, Trainer


@dataclass(frozen=True)
class Parts:
    """What a stage builds and the loop runs."""

    config: Config
    trainer: Trainer
    feed: Feed
    save: Callable[[TrainState, bool], None]
    """(state, whether it is the best so far)."""
    validate: Callable[[], dict[str, float]] | None
    step_ids: Callable[[int], list[str]] | None
    """Sample ids of a global step, where they are to be logged."""
    recorder: Recorder | None
    """On the recording rank only."""
    stop: StopRequest
    watchdog: Watchdog


@dataclass(frozen=True)
class Ending:
    """Why the loop ended."""

    reason: str
    requeue: bool = False
    thaw: bool = False
    """The run goes on at once with more to train (stage.freeze_until)."""


def _record(parts: Parts, state: TrainState, result: StepResult, rate: float, started: float, waited: float) -> Json:
    further = {} if result.further_loss is None else {"loss/mtp": result.further_loss}
    return {
        "step": state.step,
        "loss": result.loss,
        **further,
        "grad_norm": result.grad_norm,
        "lr": rate,
        "tokens": state.tokens,
        "samples": state.samples,
        "step_time_s": time.perf_counter() - started,
        "data_wait_s": waited,
    }


def train(parts: Parts, state: TrainState) -> Ending:
    """Runs from `state.step` to the last step, to `train.stop_step`, or to a stop request, whichever comes first.

    The last step done is always saved. Equal on every rank: the ranks agree on a stop request in the step's reduction.
    """
    settings, every = parts.config.train, parts.config.checkpoint.every
    last = min(settings.steps, settings.stop_step or settings.steps)
    saved = state.step
    ending = Ending("finished" if last == settings.steps else f"stop_step {last}")
    thaw = parts.config.stage.next_thaw(state.step)
    if thaw is not None and thaw < last:
        last, ending = thaw, Ending(f"thaw at step {thaw}", thaw=True)

    while state.step < last:
        parts.watchdog.beat(f"the data of step {state.step + 1}")
        started = time.perf_counter()
        parts.feed.micro_batches = settings.batch_at(state.step) // parts.trainer.groups.topology.data
        batches = parts.feed.next_step()
        waited = time.perf_counter() - started

        step = state.step + 1
        rate = learning_rate(step, settings.steps, parts.config.optim)
        set_learning_rate(parts.trainer.optimizer, rate)
        result = parts.trainer.step(batches, stop_requested=bool(parts.stop))

        state.step = step
        state.tokens += result.tokens
        state.samples += result.samples
        state.loader = parts.feed.state_dict()
        record = _record(parts, state, result, rate, started, waited)
        parts.watchdog.settled()
        parts.watchdog.beat(f"what follows step {step}: validation, records, checkpoint")
        if parts.validate and (step == last or (settings.val_every and step % settings.val_every == 0)):
            record |= parts.validate()
        if parts.recorder:
            parts.recorder.step(record)
            if parts.step_ids:
                parts.recorder.samples(step, parts.step_ids(step - 1))

        best = parts.config.checkpoint.best and state.improved(record.get("val_loss"))
        if best or step == last or result.stop_requested or (every and step % every == 0):
            parts.save(state, best)
            saved = step
        if result.stop_requested and step < last:
            ending = Ending(f"stop requested by signal, saved step {saved}", requeue=True)
            break
    return ending

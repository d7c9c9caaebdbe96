"""Pre-training and every other stage whose loss is next-token prediction on packs.

Long-context training and SFT are the same program over other data and options: which tokens carry loss is said by the
conversations and their template, whether expert biases move by the stage's config, the length of a pack and the
layout by the rest of it. What they start from is `init_from`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_glmv.checkpoint.together import only_rank_0, together
from megatron_glmv.config.load import fingerprint
from megatron_glmv.config.schema import Config
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.parallel.collectives import agree_on
from megatron_glmv.precision.fp8 import describe
from megatron_glmv.resilience.exit_codes import ExitCode
from megatron_glmv.resilience.fence import Fence
from megatron_glmv.resilience.signals import StopRequest
from megatron_glmv.resilience.watchdog import Watchdog
from megatron_glmv.stages.parts import (
    build_trainer,
    make_checkpoints,
    make_loader,
    make_validation,
    owns_loader,
    start_sinks,
    tokenizer_dir,
)
from megatron_glmv.stages.rundir import Attempt, this_rank, write_ranks
from megatron_glmv.stages.session import Session
from megatron_glmv.train.feed import Feed
from megatron_glmv.train.loop import Parts, train
from megatron_glmv.train.metrics import Recorder
from megatron_glmv.train.state import TrainState
from megatron_glmv.train.step import Trainer

STAGES = ("pretrain", "longcontext", "sft")


def run(config: Config, run_dir: Path, session: Session) -> int:
    """Trains from the newest checkpoint in `run_dir`, else from `init_from`, else from the seed.

    Returns the exit code, equal on all ranks. Errors leave as exceptions, written to the attempts ledger first.
    """
    stop = StopRequest().install()
    tokenizer = Tokenizer.load(tokenizer_dir(config))
    agree_on("the configuration", fingerprint(config))
    agree_on("the tokenizer", tokenizer.fingerprint)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, this_rank())
    recording = dist.get_rank() == 0

    fence = Fence.acquire(run_dir) if recording else None
    watchdog = Watchdog(config.watchdog_s, dist.get_rank()).start()
    checkpoints = make_checkpoints(config, session, tokenizer, run_dir, *([fence.check] if fence else []))
    trainer, state = _restored(config, session, checkpoints, watchdog, config.resume != "never")
    session.startup.mark("model")

    attempt = None
    if recording:
        write_ranks(run_dir, ranks)
        attempt = started = Attempt(run_dir, config, len(ranks), state.step)
        watchdog.on_hang = lambda reason: started.end(reason, int(ExitCode.HANG), state.step)
        tokenizer.save(run_dir / "tokenizer")
    try:
        while True:
            ending = _train(config, run_dir, session, trainer, tokenizer, checkpoints, state, stop, fence, watchdog)
            if not ending.thaw:
                break
            del trainer  # before the new one's memory is taken
            trainer, state = _restored(config, session, checkpoints, watchdog, True)
    except BaseException as error:
        if attempt is not None:
            attempt.end(f"{type(error).__name__}: {error}", int(getattr(error, "exit_code", 1)), state.step)
        raise
    finally:
        watchdog.close()
    code = ExitCode.REQUEUE if ending.requeue else ExitCode.OK
    if attempt is not None:
        attempt.end(ending.reason, int(code), state.step)
        print(f"{ending.reason} at step {state.step} of {config.train.steps}, exit code {int(code)}", flush=True)
    return int(code)


def _restored(
    config: Config, session: Session, checkpoints: Any, watchdog: Watchdog, resume: bool
) -> tuple[Trainer, TrainState]:
    """The trainer at the newest sound checkpoint, else at the run's beginning. Built once more where that checkpoint is
    not the newest one and froze other parts."""
    done = int(together(only_rank_0(lambda: max([0, *checkpoints.steps()])))[0] or 0) if resume else 0
    while True:
        trainer = build_trainer(config, session, done)
        trainer.progress = watchdog.beat
        restored = checkpoints.restore_latest(trainer.chunks, trainer.optimizer) if resume else None
        state = TrainState.from_json(restored) if restored is not None else TrainState()
        if config.stage.frozen_at(state.step) == config.stage.frozen_at(done):
            break
        done = state.step
        del trainer
    if restored is None and config.init_from:
        checkpoints.load_weights(Path(config.init_from), trainer.chunks, trainer.optimizer)
    return trainer, state


def _train(
    config: Config,
    run_dir: Path,
    session: Session,
    trainer: Any,
    tokenizer: Tokenizer,
    checkpoints: Any,
    state: TrainState,
    stop: StopRequest,
    fence: Fence | None,
    watchdog: Watchdog,
) -> Any:
    groups, packs = session.groups, config.train.global_batch
    loader = None
    if owns_loader(groups):
        data = ShardDataset(Path(config.data.path))
        batch_at = config.train.batch_at
        loader = make_loader(config, groups, data, tokenizer, run_dir, packs, batch_at, device=session.device)
        if state.loader:
            loader.load_state_dict(state.loader)
    feed = Feed(loader, groups, session.device, packs // groups.topology.data)
    session.startup.mark("data")
    recorder = None
    if dist.get_rank() == 0:
        session.startup.write(run_dir)
        sinks = start_sinks(config, run_dir, state.step, Path(config.data.path))
        recorder = Recorder(run_dir, config.train.steps, config.train.log_every, state.step, state.tokens, sinks)
        if fence is not None:
            recorder.may_write = fence.check
        recorder.note(
            f"{config.model.name} on {groups.topology.describe()}, {session.platform.name}, from step {state.step}"
        )
        for line in (*describe(config.precision), *_origin(config, state)):
            recorder.note(line)

    def save(at: TrainState, best: bool) -> None:
        trainer.start_reading_weights()
        checkpoints.save(at.step, trainer.chunks, trainer.optimizer, at.to_json(), best=best)
        trainer.done_reading_weights()

    try:
        return train(
            Parts(
                config=config,
                trainer=trainer,
                feed=feed,
                save=save,
                validate=make_validation(config, session, trainer, tokenizer, run_dir),
                step_ids=partial(loader.step_ids) if loader is not None and config.data.log_samples else None,
                recorder=recorder,
                stop=stop,
                watchdog=watchdog,
            ),
            state,
        )
    finally:
        feed.close()
        if recorder is not None:
            recorder.close()


def _origin(config: Config, state: TrainState) -> list[str]:
    """Where the weights of a run's first step come from, as a line where it is worth one."""
    if state.step:
        return []
    if config.init_from:
        return [f"weights from {config.init_from}"]
    later = config.stage.name != STAGES[0]
    return [f"stage {config.stage.name} starts from random weights: init_from=RUN takes trained ones"] if later else []

"""Reinforcement learning with curriculum sampling (arXiv 2507.01006, section 5); rollouts in process or by servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import fingerprint
from megatron_glmv.config.rl import JudgeConfig, RewardModelConfig
from megatron_glmv.config.schema import Config
from megatron_glmv.data.template import STOP_TOKENS
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.inference.media import MediaFiles
from megatron_glmv.inference.prompts import PromptBuilder
from megatron_glmv.parallel.collectives import agree_on
from megatron_glmv.resilience.exit_codes import ExitCode
from megatron_glmv.resilience.fence import Fence
from megatron_glmv.resilience.signals import StopRequest
from megatron_glmv.resilience.watchdog import Watchdog
from megatron_glmv.rl.batch import AnswerPacks
from megatron_glmv.rl.curriculum import Curriculum
from megatron_glmv.rl.learner import Learner
from megatron_glmv.rl.loop import RLParts, train
from megatron_glmv.rl.prompts import first_of_each, load_prompts, probes
from megatron_glmv.rl.rewards.endpoint import Endpoint
from megatron_glmv.rl.rewards.judge_model import JudgeModel
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.reward_model import RewardModel
from megatron_glmv.rl.rewards.types import JudgeOptions
from megatron_glmv.rl.rolling import Roller
from megatron_glmv.rl.rollout.connect import connect
from megatron_glmv.rl.rollout.contract import EngineWeights, RolloutSource
from megatron_glmv.rl.rollout.in_process import InProcessWeights, RolloutEngine
from megatron_glmv.rl.rollout.weights import WeightSync, whole_model
from megatron_glmv.rl.state import RLState
from megatron_glmv.stages.parts import build_trainer, make_checkpoints, start_sinks
from megatron_glmv.stages.rundir import Attempt, this_rank, write_ranks
from megatron_glmv.stages.session import Session
from megatron_glmv.train.loop import Ending
from megatron_glmv.train.metrics import Recorder, keep_until
from megatron_glmv.train.step import Trainer

GROUPS_FILE, HEALTH_FILE = "groups.jsonl", "verifiers.json"


def run(config: Config, run_dir: Path, session: Session) -> int:
    """Trains from the newest checkpoint in `run_dir`, else from `init_from`. Returns the exit code, equal on all
    ranks."""
    stop = StopRequest().install()
    tokenizer = find_tokenizer(config, run_dir)
    agree_on("the configuration", fingerprint(config))
    agree_on("the tokenizer", tokenizer.fingerprint)
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, this_rank())

    fence = Fence.acquire(run_dir) if dist.get_rank() == 0 else None
    watchdog = Watchdog(config.watchdog_s, dist.get_rank()).start()
    trainer = build_trainer(config, session)
    trainer.progress = watchdog.beat
    checkpoints = make_checkpoints(config, session, tokenizer, run_dir, *([fence.check] if fence else []))
    state = RLState()
    restored = checkpoints.restore_latest(trainer.chunks, trainer.optimizer) if config.resume != "never" else None
    if restored is not None:
        state = RLState.from_json(restored)
    elif config.init_from:
        checkpoints.load_weights(Path(config.init_from), trainer.chunks, trainer.optimizer)

    attempt = None
    if dist.get_rank() == 0:
        write_ranks(run_dir, ranks)
        attempt = started = Attempt(run_dir, config, len(ranks), state.step)
        watchdog.on_hang = lambda reason: started.end(reason, int(ExitCode.HANG), state.step)
        tokenizer.save(run_dir / "tokenizer")
    try:
        models = (judge_model(config.rl.judge), reward_model(config.rl.reward_model))
        with Judge(JudgeOptions(browser=config.rl.browser), *models) as judge:
            guards = (stop, judge, fence, watchdog)
            ending = _train(config, run_dir, session, trainer, tokenizer, checkpoints, state, *guards)
    except BaseException as error:
        if attempt is not None:
            attempt.end(f"{type(error).__name__}: {error}", int(getattr(error, "exit_code", 1)), state.step)
        raise
    code = ExitCode.REQUEUE if ending.requeue else ExitCode.OK
    if attempt is not None:
        attempt.end(ending.reason, int(code), state.step)
        print(f"{ending.reason} at step {state.step} of {config.train.steps}, exit code {int(code)}", flush=True)
    return int(code)


def judge_model(options: JudgeConfig) -> JudgeModel | None:
    """Raises ConfigError where the address is none, or the key is not in the environment."""
    if not options.url:
        return None
    endpoint = Endpoint(options.url, options.model, options.key_env)
    return JudgeModel(endpoint, votes=options.votes, seconds=options.seconds, parallel=options.parallel)


def reward_model(options: RewardModelConfig) -> RewardModel | None:
    """Raises ConfigError as `judge_model` does."""
    if not options.url:
        return None
    return RewardModel(Endpoint(options.url, options.model, options.key_env, "rl.reward_model"), options)


def find_tokenizer(config: Config, run_dir: Path) -> Tokenizer:
    """`data.tokenizer`, else the run's own, else that of the run in which `init_from` lies. Raises ConfigError."""
    places = [run_dir / "tokenizer"]
    if config.init_from:
        start = Path(config.init_from)
        places += [start / "tokenizer", start.parent.parent / "tokenizer"]
    if config.data.path:
        places.append(Path(config.data.path).parent / "tokenizer")
    if config.data.tokenizer:
        places = [Path(config.data.tokenizer)]
    for place in places:
        if (place / "tokenizer.json").is_file():
            return Tokenizer.load(place)
    tried = ", ".join(str(place) for place in places)
    raise ConfigError("data.tokenizer", config.data.tokenizer, f"no tokenizer is in {tried}", "name its directory")


def _engine(
    config: Config, run_dir: Path, session: Session, trainer: Trainer, tokenizer: Tokenizer, files: MediaFiles
) -> tuple[RolloutSource, EngineWeights]:
    """What answers, and how it is kept at the trained weights."""
    device, groups = session.device, session.groups
    if config.rl.engine != "inprocess":
        return connect(config, run_dir, trainer.chunks, groups, tokenizer, files, device)
    model = whole_model(config, groups, backend=session.backend, device=device)
    engine = RolloutEngine(model, tokenizer, files, STOP_TOKENS[config.data.template], device)
    if config.rl.routing_replay:
        engine.record_routes()
    return engine, InProcessWeights(WeightSync(trainer.chunks, model, groups, device), engine)


def _train(
    config: Config,
    run_dir: Path,
    session: Session,
    trainer: Trainer,
    tokenizer: Tokenizer,
    checkpoints: Any,
    state: RLState,
    stop: StopRequest,
    judge: Judge,
    fence: Fence | None,
    watchdog: Watchdog,
) -> Ending:
    rl = config.rl

    def save(at: RLState) -> None:
        trainer.start_reading_weights()
        checkpoints.save(at.step, trainer.chunks, trainer.optimizer, at.to_json())
        trainer.done_reading_weights()

    parts = assemble(config, session, trainer, tokenizer, judge, state, save, stop, watchdog, run_dir)
    recorder = None
    if dist.get_rank() == 0:
        sinks = start_sinks(config, run_dir, state.step, Path(rl.prompts))
        recorder = Recorder(run_dir, config.train.steps, config.train.log_every, state.step, state.tokens, sinks)
        keep_until(run_dir / GROUPS_FILE, state.step or -1)  # a run that starts anew grades anew
        if fence is not None:
            recorder.may_write = fence.check
        layout = session.groups.topology.describe()
        recorder.note(f"{config.model.name} on {layout}, {len(parts.prompts)} prompts, from step {state.step}")
    try:
        groups_file = run_dir / GROUPS_FILE if rl.log_groups else None
        parts = replace(parts, recorder=recorder, groups_file=groups_file, health_file=run_dir / HEALTH_FILE)
        return train(parts, state)
    finally:
        watchdog.close()
        if recorder is not None:
            recorder.close()


def assemble(
    config: Config,
    session: Session,
    trainer: Trainer,
    tokenizer: Tokenizer,
    judge: Judge,
    state: RLState,
    save: Callable[[RLState], None],
    stop: StopRequest,
    watchdog: Watchdog,
    run_dir: Path = Path(),
) -> RLParts:
    """What the loop runs, without a recorder: prompts, curriculum, engine, learner. Raises DataError."""
    rl, device = config.rl, session.device
    pool = {prompt.id: prompt for prompt in load_prompts(Path(rl.prompts), rl.curriculum.edges)}
    heldout = first_of_each(load_prompts(Path(rl.heldout), rl.curriculum.edges), rl.heldout_each) if rl.heldout else []
    judge.require({prompt.verifier for prompt in (*pool.values(), *heldout) if prompt.episode is None})
    curriculum = Curriculum(rl.curriculum, [prompt.place for prompt in pool.values()], config.train.seed)
    if state.curriculum:
        curriculum.load(state.curriculum)

    files = MediaFiles(config.data, config.model.vision, device)
    budget = config.data.pack_tokens
    engine, weights = _engine(config, run_dir, session, trainer, tokenizer, files)
    roller = Roller(rl, engine, PromptBuilder(tokenizer, files), judge, config.train.seed, budget)
    # A thread that rolls out ahead and the one that trains decode at the same time, each with a decoder of its own.
    read = MediaFiles(config.data, config.model.vision, device) if rl.staleness else files
    learner = Learner(config, trainer, roller, pool, AnswerPacks(read, tokenizer.pad, budget, rl.loss_mean))
    probe = probes(list(pool.values()), rl.server.probe) if rl.engine != "inprocess" else []

    def sync() -> None:
        trainer.start_reading_weights()
        weights.sync()
        trainer.done_reading_weights()
        if probe:
            learner.check(roller.roll(probe, 0, 1, greedy=True, judged=False))

    return RLParts(
        config=config,
        prompts=pool,
        heldout=heldout,
        curriculum=curriculum,
        roller=roller,
        learner=learner,
        sync=sync,
        verify=weights.verify,
        save=save,
        stop=stop,
        watchdog=watchdog,
    )

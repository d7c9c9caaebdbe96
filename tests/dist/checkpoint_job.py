"""What the ranks of the checkpoint tests do: build the tiny model, resume, train some steps, save."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers import tiny

from megatron_glmv.checkpoint import store
from megatron_glmv.config.schema import CheckpointConfig, Config


@dataclass(frozen=True)
class Leg:
    """One life of a run."""

    config: Config
    load: Path | None = None
    """Root of checkpoints to resume from; None: fresh weights."""
    until: int = 0
    """Trains up to this step, counted from the beginning of the run."""
    save: Path | None = None
    """Root to save in, after each of `save_at`."""
    save_at: tuple[int, ...] = ()
    """A step that is named twice is saved twice."""
    keep: int = 2
    fault: str = ""
    """POINT@STEP of checkpoint/store.py, where a rank kills itself."""
    marker: Path = Path("unset")
    bias: bool = False
    """Expert biases that bf16 can't hold, set before the first save."""


@dataclass
class Outcome:
    resumed_at: int | None = None
    history: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, loss, gradient norm)"""
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    exit_code: int = 0


class Job:
    """The parts of a run in one rank."""

    def __init__(self, config: Config) -> None:
        import torch.distributed as dist

        from megatron_glmv.model.build import build_model, sharding_metadata
        from megatron_glmv.model.freeze import freeze
        from megatron_glmv.parallel.groups import init_groups
        from megatron_glmv.parallel.seeding import seed_all
        from megatron_glmv.parallel.topology import Topology
        from megatron_glmv.train.feed import Feed
        from megatron_glmv.train.optimizer import build_optimizer, wrap_ddp
        from megatron_glmv.train.step import Trainer

        self.config = config
        groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
        seed_all(config.train.seed)
        device = torch.device("cpu")
        chunks = build_model(config, groups, backend="torch", device=device)
        freeze(chunks, config.stage.freeze)
        chunks = wrap_ddp(chunks, config.parallel, config.precision)
        optimizer = build_optimizer(config.optim, config, chunks)
        self.trainer = Trainer(chunks, optimizer, groups, device, config.data.pack_tokens)
        packs, size = config.train.global_batch, groups.topology.data
        owner = dist.get_process_group_ranks(groups.model)[0] == dist.get_rank()
        self.packs = tiny.Packs(packs, groups.dp_rank, size) if owner else None
        self.feed = Feed(self.packs, groups, device, packs // size)
        self.metadata = sharding_metadata(groups)
        self.topology = groups.topology.to_json()
        self.step = 0

    def manager(self, root: Path, tokenizer: str = "tok", **changes: Any) -> Any:
        from megatron_glmv.checkpoint.manager import CheckpointManager, Identity

        identity = Identity(
            model=dataclasses.asdict(self.config.model), tokenizer_fingerprint=tokenizer, config_fingerprint="c"
        )
        return CheckpointManager(root, CheckpointConfig(**changes), identity, self.topology, self.metadata)

    def resume(self, root: Path, **changes: Any) -> int | None:
        state = self.manager(root, **changes).restore_latest(self.trainer.chunks, self.trainer.optimizer)
        if state is None:
            return None
        assert state["loader"] == {"position": state["step"]}
        self.step = state["step"]
        if self.packs is not None:
            self.packs.load_state_dict(state["loader"])
        return self.step

    def train_step(self) -> tuple[int, float, float]:
        from megatron_glmv.train.optimizer import set_learning_rate
        from megatron_glmv.train.schedule import learning_rate

        settings = self.config.train
        self.step += 1
        set_learning_rate(self.trainer.optimizer, learning_rate(self.step, settings.steps, self.config.optim))
        result = self.trainer.step(self.feed.next_step())
        return self.step, result.loss, result.grad_norm

    def save(self, root: Path, **changes: Any) -> Path:
        self.trainer.start_reading_weights()
        try:
            state = {"step": self.step, "loader": {"position": self.step}}
            path: Path = self.manager(root, **changes).save(
                self.step, self.trainer.chunks, self.trainer.optimizer, state
            )
        finally:
            self.trainer.done_reading_weights()
        return path

    def set_biases(self) -> None:
        """Different in each layer and expert, 2^-12 beyond what bf16 keeps of 1."""
        for chunk in self.trainer.chunks:
            for name, buffer in chunk.named_buffers():
                if name.endswith("expert_bias"):
                    count = torch.arange(buffer.numel(), dtype=torch.float32)
                    buffer.data = 1.0 + (1 + count) * 2.0**-12


def live(leg: Leg) -> Outcome:
    """Runs in every rank."""
    from megatron_glmv.checkpoint.errors import CheckpointError

    outcome = Outcome()
    if leg.fault:
        os.environ[store.FAULT], os.environ[store.FAULT_MARKER] = leg.fault, str(leg.marker)
    handler = logging.Handler()
    handler.emit = lambda record: outcome.warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("megatron_glmv.checkpoint").addHandler(handler)
    job = Job(leg.config)
    try:
        if leg.load is not None:
            outcome.resumed_at = job.resume(leg.load)
        if leg.bias:
            job.set_biases()
        while True:
            for _ in range(leg.save_at.count(job.step)):
                assert leg.save is not None
                job.save(leg.save, keep=leg.keep)
            if job.step >= leg.until:
                return outcome
            outcome.history.append(job.train_step())
    except CheckpointError as error:
        outcome.error, outcome.exit_code = str(error), int(error.exit_code)
        return outcome
    finally:
        logging.getLogger("megatron_glmv.checkpoint").removeHandler(handler)

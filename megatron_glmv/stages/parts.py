"""How a stage's parts are made from a Config."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_glmv.checkpoint.manager import CheckpointManager, Identity
from megatron_glmv.config.load import fingerprint, to_json
from megatron_glmv.config.schema import Config
from megatron_glmv.data.batches import CPU
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.loader import PackLoader
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.data.types import Json, PackedBatch
from megatron_glmv.model.build import build_model, sharding_metadata
from megatron_glmv.model.freeze import freeze
from megatron_glmv.parallel.groups import Groups
from megatron_glmv.precision.fp8 import transformer_fields
from megatron_glmv.stages.session import Session
from megatron_glmv.train.feed import Feed
from megatron_glmv.train.optimizer import build_optimizer, wrap_ddp
from megatron_glmv.train.sinks import Sink, data_fingerprint, description, open_sinks
from megatron_glmv.train.step import Trainer
from megatron_glmv.train.validate import validation_losses


def tokenizer_dir(config: Config) -> Path:
    """`data.tokenizer`, or the one that lies beside the shards."""
    return Path(config.data.tokenizer) if config.data.tokenizer else Path(config.data.path).parent / "tokenizer"


def validation_dir(config: Config) -> Path | None:
    """`data.val_path`, resolved; None where there is nothing to validate on."""
    if config.data.val_path != "auto":
        return Path(config.data.val_path) if config.data.val_path else None
    beside = Path(config.data.path).parent / "val"
    return beside if beside.is_dir() else None


def owns_loader(groups: Groups) -> bool:
    """True on the rank of a model replica that reads and decodes for all of it."""
    return dist.get_process_group_ranks(groups.model)[0] == dist.get_rank()


def make_loader(
    config: Config,
    groups: Groups,
    data: ShardDataset,
    tokenizer: Tokenizer,
    run_dir: Path,
    packs: int,
    batch_at: Callable[[int], int] | None = None,
    held_out: bool = False,
    device: torch.device = CPU,
) -> PackLoader:
    """device: the rank's, for `data.decode_on=gpu`."""
    return PackLoader(
        data,
        config.data,
        config.model.vision,
        tokenizer,
        seed=config.train.seed,
        global_batch=packs,
        dp_rank=groups.dp_rank,
        dp_size=groups.topology.data,
        run_dir=run_dir,
        cost=Cost.of(config.model),
        batch_at=batch_at,
        held_out=held_out,
        device=device if config.data.decode_on == "gpu" else CPU,
    )


def build_trainer(config: Config, session: Session, done: int = 0) -> Trainer:
    """Model, DDP and optimizer of a run that is `done` steps old, with weights fresh from the seed."""
    frozen = config.stage.frozen_at(done)
    config = replace(config, stage=replace(config.stage, freeze=frozen, freeze_until=None))
    fp8 = transformer_fields(config.precision, session.backend, session.platform)
    chunks = build_model(config, session.groups, backend=session.backend, device=session.device, fp8=fp8)
    freeze(chunks, frozen)
    chunks = wrap_ddp(chunks, config.parallel, config.precision)
    optimizer = build_optimizer(config.optim, config, chunks)
    return Trainer(chunks, optimizer, session.groups, session.device, config.data.pack_tokens)


def make_checkpoints(
    config: Config,
    session: Session,
    tokenizer: Tokenizer,
    run_dir: Path,
    may_write: Callable[[], None] = lambda: None,
) -> CheckpointManager:
    identity = Identity(
        model=to_json(config)["model"],
        tokenizer_fingerprint=tokenizer.fingerprint,
        config_fingerprint=fingerprint(config),
    )
    return CheckpointManager(
        run_dir / "checkpoints",
        config.checkpoint,
        identity,
        topology=session.groups.topology.to_json(),
        metadata=sharding_metadata(session.groups),
        may_write=may_write,
        thawed_by=config.stage.thawed_by,
    )


def start_sinks(config: Config, run_dir: Path, first_step: int, data: Path) -> list[Sink]:
    """The sinks of a run, told what the run is, which run.json says too. For the recording rank."""
    sinks = open_sinks(config.tracking.sinks, run_dir, first_step)
    run = description(to_json(config), data_fingerprint(data))
    (run_dir / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    for sink in sinks:
        sink.describe(run)
    return sinks


class FixedBatches:
    """A loader of the same packs again and again: the validation set, decoded once."""

    def __init__(self, loader: PackLoader) -> None:
        self._batches = loader.next_step()
        loader.close()

    def next_step(self) -> list[PackedBatch]:
        return self._batches

    def state_dict(self) -> Json:
        return {}

    def load_state_dict(self, state: Json) -> None: ...
    def close(self) -> None: ...


def make_validation(
    config: Config, session: Session, trainer: Any, tokenizer: Tokenizer, run_dir: Path
) -> Callable[[], dict[str, float]] | None:
    """A function that gives the validation losses, or None where no held-out set is configured. Collective."""
    directory = validation_dir(config)
    if directory is None or not config.train.val_packs:
        return None
    groups = session.groups
    size = groups.topology.data
    packs = -(-config.train.val_packs // size) * size  # every replica takes part equally
    data = ShardDataset(directory)
    domain_by_key = {entry.key: entry.domain or "other" for entry in map(data.entry, range(len(data)))}
    domains = sorted(set(domain_by_key.values()))
    index_by_key = {key: domains.index(domain) for key, domain in domain_by_key.items()}
    loader = None
    if owns_loader(groups):
        unmixed = replace(config.data, mixture=None, mixture_schedule=None, max_epochs=None)
        own = replace(config, data=unmixed)
        made = make_loader(own, groups, data, tokenizer, run_dir, packs, held_out=True, device=session.device)
        loader = FixedBatches(made)
    feed = Feed(loader, groups, session.device, packs // size)
    return partial(validation_losses, trainer, feed, 1, domains, index_by_key.__getitem__)

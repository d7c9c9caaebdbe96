"""Saving and resuming: what is written when, which checkpoint is loaded, and what is refused.

    save      stage -> state.json, rng_*.json, shards, index -> fsync and hash -> manifest -> rename -> prune
    restore   newest step_N -> verify -> identity -> load; a broken one is reported and the one before it is taken

Every rank calls every method, and all ranks come out of it the same way: with the same result or the same exception.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import torch.distributed as dist

import megatron_glmv
from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.errors import CorruptCheckpointError, ReadError, SaveError
from megatron_glmv.checkpoint.identity import STARTING_POINT, TRAINING_ONLY, Identity, check_identity
from megatron_glmv.checkpoint.manifest import FileRecord, Json, Manifest, hash_file, read_manifest
from megatron_glmv.checkpoint.reader import MCORE_CONFIG, MCORE_CONFIG_FILE, STATE_FILE, Checkpoint, resolve
from megatron_glmv.checkpoint.rng import restore_rng, rng_state
from megatron_glmv.checkpoint.sharded import has_moments, load_shards, save_shards
from megatron_glmv.checkpoint.together import only_rank_0, together
from megatron_glmv.config.schema import CheckpointConfig
from megatron_glmv.model.prediction import PREDICTION

__all__ = ["CheckpointManager", "Identity"]

logger = logging.getLogger(__name__)


class CheckpointManager:
    """The checkpoints of one run.

    `root` is RUN_DIR/checkpoints on a file system that all ranks share. `topology` is the layout as JSON, for the
    record. `metadata` is what sharded state dicts are made with; it holds the data-parallel group (model/build.py).
    `may_write` is asked on rank 0 before anything is staged and again before the commit; it raises to forbid it.
    `thawed_by`: parts of the model that were frozen up to a step, so that its checkpoint has no state of them.
    """

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        identity: Identity,
        topology: Json,
        metadata: dict[str, Any],
        may_write: Callable[[], None] = lambda: None,
        thawed_by: Callable[[int], tuple[str, ...]] = lambda step: (),
    ) -> None:
        self.root, self.config, self.identity, self._may_write = root, config, identity, may_write
        self.topology: Json = json.loads(json.dumps(topology))
        self._metadata = metadata
        self.thawed_by = thawed_by

    def steps(self) -> list[int]:
        """Committed steps on disk, ascending, as this rank sees them."""
        return store.committed(self.root)

    def save(self, step: int, chunks: list[Any], optimizer: Any, state: Json, *, best: bool = False) -> Path:
        """Writes and commits the checkpoint of `step`, prunes old ones, returns its directory.

        `chunks` are the model chunks of this rank (in megatron-core's DDP or not); `optimizer` may be None (weights
        only). An optimizer that has not made a step yet has nothing to save and is left out. `state` is the same on all
        ranks and comes back from `restore_latest`. A checkpoint of the same step is replaced, safely. `best`: points
        `checkpoints/best` at it, which keeps it from being pruned.
        Raises SaveError on every rank if any rank failed; nothing is committed then, and nothing older is touched.
        """
        trainer = json.loads(json.dumps(state, allow_nan=False))
        with_optimizer = optimizer is not None and any(together(lambda: has_moments(optimizer), SaveError))
        staging = Path(str(together(only_rank_0(lambda: self._stage(step)), SaveError)[0]))
        try:
            together(lambda: _write_text(staging, f"rng_{dist.get_rank()}.json", json.dumps(rng_state())), SaveError)
            counted = together(
                lambda: save_shards(staging, step, chunks, optimizer if with_optimizer else None, self._metadata),
                SaveError,
            )
            content = {"step": step, "optimizer_step": max(counted), "trainer": trainer}
            together(only_rank_0(lambda: self._write_common(staging, content)), SaveError)
            records = together(lambda: _settle(staging), SaveError)
            files = {name: record for records_of_rank in records for name, record in records_of_rank.items()}
            together(only_rank_0(lambda: self._commit(staging, step, with_optimizer, files)), SaveError)
        except SaveError as error:
            if dist.get_rank() == 0:
                store.remove(staging)
            raise SaveError(f"the checkpoint of step {step} could not be written: {error}") from None
        store.fault_point("before_prune", step)
        together(only_rank_0(lambda: self._tidy(step if best else None)), SaveError)
        return store.directory_of(self.root, step)

    def restore_latest(self, chunks: list[Any], optimizer: Any) -> Json | None:
        """Loads the newest sound checkpoint, saved on any layout, and returns its state; None if there is none at all.

        A checkpoint that is not what its manifest says (with `config.verify` by sha256, always by size) is reported by
        one warning and renamed, and the one before it is taken. Random generators are restored on the same layout only.
        Raises CorruptCheckpointError if checkpoints exist and none is sound, MismatchError if the newest sound one
        belongs to another model or tokenizer.
        """
        steps = together(only_rank_0(self._candidates))[0] or []
        broken: dict[int, str] = {}
        for step in reversed(steps):
            try:
                state = self._restore(step, chunks, optimizer)
            except ReadError as error:
                broken[step] = str(error)
            else:
                self._set_aside(broken, step)
                return state
        if broken:
            found = "; ".join(f"step_{step}: {why}" for step, why in broken.items())
            raise CorruptCheckpointError(
                f"no checkpoint in {self.root} is sound, and starting from scratch would lose the run ({found}). "
                "Restore one of them, or move the directory away to start again"
            )
        return None

    def load_weights(self, path: Path, chunks: list[Any], optimizer: Any = None) -> None:
        """Takes the weights of a checkpoint (or of the newest in a run directory), saved on any layout. A prediction
        layer that the model does not have is left behind.

        `optimizer`, if it exists already, gets its fp32 copies from them; its moments are left as they are. Raises
        CorruptCheckpointError, or MismatchError (the rotary base and what only training uses may differ).
        """
        try:
            checkpoint = self._open(Path(str(together(only_rank_0(lambda: str(resolve(path))))[0])))
            check_identity(checkpoint.manifest, self.identity, str(path), STARTING_POINT)
            load_shards(checkpoint, chunks, None, self._metadata, spare=PREDICTION)
        except ReadError as error:
            raise CorruptCheckpointError(str(error)) from None
        if optimizer is not None:
            optimizer.reload_model_params()

    def _restore(self, step: int, chunks: list[Any], optimizer: Any) -> Json:
        path = store.directory_of(self.root, step)
        checkpoint = self._open(path)
        if checkpoint.manifest.step != step:
            raise ReadError(f"{path} holds step {checkpoint.manifest.step}")
        check_identity(checkpoint.manifest, self.identity, str(path), TRAINING_ONLY)
        with_optimizer = checkpoint.manifest.optimizer
        load_shards(checkpoint, chunks, optimizer if with_optimizer else None, self._metadata, self.thawed_by(step))
        if optimizer is not None and not with_optimizer:
            optimizer.reload_model_params()
        if checkpoint.manifest.topology == self.topology:
            together(lambda: _read_rng(path))
        return checkpoint.state

    def _open(self, path: Path) -> Checkpoint:
        """Manifest and files checked, the files spread over the ranks. Raises ReadError on every rank."""
        manifests = together(lambda: read_manifest(path))
        if any(manifest != manifests[0] for manifest in manifests):
            raise ReadError(f"{path}: ranks read different manifests; is the file system shared?")
        checkpoint = Checkpoint(path, manifests[0])
        rank, world = dist.get_rank(), dist.get_world_size()
        found = together(lambda: checkpoint.problems(self.config.verify, rank, world))
        problems = [problem for of_rank in found for problem in of_rank]
        if problems:
            raise ReadError(f"{path}: {'; '.join(problems)}")
        together(checkpoint.parse)
        return checkpoint

    def _candidates(self) -> list[int]:
        store.recover(self.root)
        return store.step_directories(self.root)

    def _set_aside(self, broken: dict[int, str], taken: int) -> None:
        if dist.get_rank() != 0:
            return
        for step, why in broken.items():
            try:
                where = f"renamed to {store.quarantine(self.root, step).name}"
            except OSError as error:
                where = f"left where it is ({error})"
            logger.warning(
                "checkpoint step_%d is broken and was %s; going on from step_%d: %s", step, where, taken, why
            )

    def _write_common(self, staging: Path, content: Json) -> None:
        _write_text(staging, STATE_FILE, json.dumps(content, indent=1))
        _write_text(staging, MCORE_CONFIG_FILE, json.dumps(MCORE_CONFIG))

    def _stage(self, step: int) -> str:
        self._may_write()
        return str(store.stage(self.root, step))

    def _commit(self, staging: Path, step: int, optimizer: bool, files: dict[str, FileRecord]) -> None:
        seen = {path.name: path.stat().st_size for path in staging.iterdir()}
        if seen != {name: record.bytes for name, record in files.items()}:
            odd = sorted({*seen} ^ {*files}) or "sizes"
            raise SaveError(f"{staging} does not hold what the ranks wrote ({odd}); is the file system shared?")
        manifest = Manifest(
            step=step,
            optimizer=optimizer,
            model=self.identity.model,
            tokenizer_fingerprint=self.identity.tokenizer_fingerprint,
            config_fingerprint=self.identity.config_fingerprint,
            topology=self.topology,
            package_version=megatron_glmv.__version__,
            libraries={name: packages.version(name) for name in ("torch", "megatron-core")},
            files=files,
        )
        self._may_write()
        store.commit(staging, self.root, manifest)

    def _tidy(self, best: int | None) -> None:
        try:
            if best is not None:
                store.mark_best(self.root, best)
            store.prune(self.root, self.config.keep)
        except OSError as error:
            logger.warning("the best checkpoint in %s is not marked, or old ones not deleted: %s", self.root, error)


def _write_text(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(text + "\n", encoding="utf-8")


def _settle(staging: Path) -> dict[str, FileRecord]:
    """Makes the files that this rank wrote durable and hashes them. Rank 0 has the common ones too."""
    rank = dist.get_rank()
    own = [path for path in staging.iterdir() if path.name.startswith((f"__{rank}_", f"rng_{rank}."))]
    if rank == 0:
        own += [path for path in staging.iterdir() if not path.name.startswith(("__", "rng_"))]
    records = {}
    for path in own:
        path.chmod(path.stat().st_mode & 0o640)
        records[path.name] = hash_file(path, before=os.fsync)
    return records


def _read_rng(path: Path) -> None:
    try:
        restore_rng(json.loads((path / f"rng_{dist.get_rank()}.json").read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReadError(f"{path / f'rng_{dist.get_rank()}.json'} cannot be read: {error}") from None

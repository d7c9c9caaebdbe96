"""From a checkpoint directory to an engine in this process: no launcher, no run directory needed.

What the checkpoint says is taken from it: sizes of the model, dtype of the weights, fingerprint of the tokenizer. How
media are seen (pixel budgets, frames a second, template) is taken from the run's config.yaml two folders up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from megatron_glmv.checkpoint.reader import Checkpoint, open_checkpoint
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import from_dict
from megatron_glmv.config.schema import Config
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.template import GLM41V, GLM45V, STOP_TOKENS
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.inference.media import MediaFiles
from megatron_glmv.inference.prompts import PromptBuilder
from megatron_glmv.parallel.groups import Groups
from megatron_glmv.stages.session import Session, single_process

if TYPE_CHECKING:
    from megatron_glmv.inference.engine import Engine


@dataclass(frozen=True)
class Loaded:
    """An engine, and what feeds it."""

    engine: Engine
    prompts: PromptBuilder
    path: Path
    """The directory of the checkpoint."""
    step: int
    groups: Groups
    """Of the one process that the model lives in."""


@contextmanager
def load_for_inference(ckpt: Path, tokenizer: Path | None = None, *, verify: bool = True) -> Iterator[Loaded]:
    """The model of a checkpoint (or of the newest one in a run directory), saved on any layout, whole in this process.

    `tokenizer` overrides where its directory is looked for; it has to be the one the checkpoint was trained with.
    `verify` compares every file with its sha256. Raises ReadError, MismatchError, or ConfigError with the way out.
    """
    checkpoint = open_checkpoint(ckpt)
    config = inference_config(checkpoint)
    words = find_tokenizer(checkpoint, config, tokenizer)
    with single_process(config) as session:
        from megatron_glmv.inference.engine import Engine

        model = _build(config, session, checkpoint, words.fingerprint, verify)
        files = MediaFiles(config.data, config.model.vision, session.device)
        engine = Engine(model, words, files, STOP_TOKENS[config.data.template], session.device)
        yield Loaded(engine, PromptBuilder(words, files), checkpoint.path, checkpoint.manifest.step, session.groups)


def inference_config(checkpoint: Checkpoint) -> Config:
    """One process, the checkpoint's model and dtype; data options of its run, or the defaults where there is none. A
    prediction layer is left behind: it takes part in training only."""
    run = _run_config(checkpoint.path)
    half = any(checkpoint.tensors[name].dtype == torch.bfloat16 for name in checkpoint.weights)
    named = str(checkpoint.manifest.model.get("name"))
    tree: dict[str, Any] = {
        "experiment": "inference",
        "model": {**checkpoint.manifest.model, "mtp": {"layers": 0}},
        "precision": {"name": "bf16" if half else "fp32"},
        "data": run.get("data") or {"template": GLM41V if named.endswith(GLM41V) else GLM45V},
    }
    return from_dict(tree)


def find_tokenizer(checkpoint: Checkpoint, config: Config, given: Path | None) -> Tokenizer:
    """The tokenizer with the checkpoint's fingerprint, from the first place that has it. Raises ConfigError."""
    places = [given] if given else _tokenizer_places(checkpoint.path, config)
    for place in places:
        try:
            found = Tokenizer.load(place)
        except DataError:
            continue
        if found.fingerprint == checkpoint.manifest.tokenizer_fingerprint:
            return found
    if given:
        raise ConfigError("--tokenizer", given, f"is not the tokenizer that {checkpoint.path} was trained with")
    tried = ", ".join(str(place) for place in places) or "nowhere, for the run's config.yaml is not there"
    raise ConfigError(
        "--tokenizer", None, f"that of {checkpoint.path} was not found (tried {tried})", "give its directory"
    )


def _tokenizer_places(path: Path, config: Config) -> list[Path]:
    places = [path.parent.parent / "tokenizer"]
    if config.data.tokenizer:
        places.append(Path(config.data.tokenizer))
    if config.data.path:
        places += [Path(config.data.path).parent / "tokenizer", Path(config.data.path) / "tokenizer"]
    return places


def _run_config(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load((path.parent.parent / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _build(config: Config, session: Session, checkpoint: Checkpoint, fingerprint: str, verify: bool) -> Any:
    from megatron_glmv.checkpoint.manager import CheckpointManager, Identity
    from megatron_glmv.config.schema import CheckpointConfig
    from megatron_glmv.model.build import build_model, sharding_metadata

    manifest = checkpoint.manifest
    chunks = build_model(config, session.groups, backend=session.backend, device=session.device)
    identity = Identity(model=manifest.model, tokenizer_fingerprint=fingerprint, config_fingerprint="")
    manager = CheckpointManager(
        checkpoint.path.parent,
        CheckpointConfig(verify=verify),
        identity,
        manifest.topology,
        sharding_metadata(session.groups),
    )
    manager.load_weights(checkpoint.path, chunks)
    (model,) = chunks
    return model.module if hasattr(model, "module") else model  # without the wrapper that casts inputs of a bf16 run

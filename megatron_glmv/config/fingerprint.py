"""What a run is, as one digest: which options decide its numbers, and which may change when it resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .schema import Config

NOT_LOAD_BEARING = (
    "experiment",
    "run_dir",
    "init_from",
    "resume",
    "platform",
    "backend",
    "parallel",
    "checkpoint",
    "cluster",
    "watchdog_s",
    "tracking",
    "data.workers",
    "data.prefetch",
    "data.log_samples",
    "data.path",
    "data.val_path",
    "train.stop_step",
    "train.log_every",
    "train.val_every",
    "train.val_packs",
    "train.moe_router_fusion",
    "train.moe_permute_fusion",
    "train.recompute",
    "train.recompute_vision",
    "rl.prompts",
    "rl.heldout",
    "rl.heldout_each",
    "rl.heldout_every",
    "rl.heldout_samples",
    "rl.verify_weights_every",
    "rl.log_groups",
)
"""Options (or whole groups) a run may change when it resumes: they move or place the work, and change no sample and no
formula. Another layout is one of them: sums then differ in rounding only. The data set itself is held to by the
tokenizer's and the index's own fingerprints, not by its path."""


def flatten(config: Config) -> dict[str, Any]:
    """Every option by its dotted name, e.g. {"parallel.tensor": 2}; a `moe` that is None stays one entry."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(f"{prefix}.{field.name}".lstrip("."), getattr(value, field.name))
        else:
            flat[prefix] = value

    walk("", config)
    return flat


def load_bearing(config: Config) -> dict[str, Any]:
    """The options that decide the numbers of a run, by dotted name."""
    skip = tuple(f"{name}." for name in NOT_LOAD_BEARING)
    return {key: value for key, value in flatten(config).items() if not f"{key}.".startswith(skip)}


def fingerprint(config: Config) -> str:
    """sha256 (hex) of the load-bearing options: equal for two configs that must give the same loss curve."""
    return _digest(load_bearing(config))


def identity(config: Config) -> str:
    """sha256 (hex) of every option but run_dir: what all ranks of one run must agree on."""
    return _digest({key: value for key, value in flatten(config).items() if key != "run_dir"})


def replace_option(config: Config, option: str, value: object) -> Config:
    """The config with one option, by dotted name, set to another value."""

    def put(node: Any, path: list[str]) -> Any:
        inner = put(getattr(node, path[0]), path[1:]) if path[1:] else value
        return dataclasses.replace(node, **{path[0]: inner})

    changed: Config = put(config, option.split("."))
    return changed


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

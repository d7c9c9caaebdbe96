"""Both formats behind one view: rows of our tensors, whoever holds them.

A row is one index over all axes before the last of a stack of matrices, of the first axis of others (mapping.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.hf.config import model_from_hf
from megatron_glmv.checkpoint.hf.mapping import NameMapping, check_shapes, name_mapping, stored_experts
from megatron_glmv.checkpoint.hf.prediction import take_prediction
from megatron_glmv.checkpoint.hf.safetensors import Stored, read_bytes, read_directory, read_json
from megatron_glmv.checkpoint.reader import Checkpoint, open_checkpoint
from megatron_glmv.checkpoint.slices import Slices
from megatron_glmv.config.load import from_dict
from megatron_glmv.config.schema import ModelConfig, MTPConfig

CONFIG = "config.json"


class Rows(Protocol):
    """A checkpoint of either format. Safe to read from several threads."""

    @property
    def path(self) -> Path: ...

    @property
    def model(self) -> ModelConfig: ...

    def dtype(self, name: str) -> torch.dtype:
        """Of our tensor, as it is stored."""

    def read(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fills `out` [rows, width], of that dtype, with the rows of our tensor from `start`. Raises ReadError."""


@dataclass(frozen=True)
class HfRows:
    """A directory of transformers'."""

    path: Path
    model: ModelConfig
    mapping: NameMapping
    stored: dict[str, Stored]
    left_out: tuple[str, ...] = ()
    """Tensors of a prediction layer that was not wanted."""

    def dtype(self, name: str) -> torch.dtype:
        kinds = {self.stored[span.name].dtype for span in self.mapping.entry[name].spans}
        if len(kinds) > 1:
            names = sorted({span.name for span in self.mapping.entry[name].spans})
            raise MismatchError(
                f"{self.path}: {names[0]} and its like are of different dtypes: {sorted(map(str, kinds))}"
            )
        return kinds.pop()

    def read(self, name: str, start: int, out: torch.Tensor) -> None:
        entry, at = self.mapping.entry[name], 0
        for span in entry.within(start, len(out)):
            held = self.stored[span.name]
            begin = held.start + span.offset * entry.width * held.dtype.itemsize
            read_bytes(held.file, begin, out[at : at + span.rows])
            at += span.rows


@dataclass(frozen=True)
class OurRows:
    """A checkpoint of ours; its optimizer's state is not looked at."""

    path: Path
    model: ModelConfig
    checkpoint: Checkpoint

    @cached_property
    def _slices(self) -> Slices:
        return Slices(self.checkpoint)

    def dtype(self, name: str) -> torch.dtype:
        return self.checkpoint.tensors[name].dtype

    def read(self, name: str, start: int, out: torch.Tensor) -> None:
        self._slices.read(name, start, out)


def open_hf(path: Path, mtp: bool | None = None) -> HfRows:
    """Config, index and headers read and held against each other. `mtp`: with the prediction layer; None: where there
    is one. Raises ReadError, ConfigError for another model, MismatchError that lists missing, unknown and misshapen
    tensors."""
    config = read_json(path / CONFIG)
    model = model_from_hf(config)
    taken = take_prediction(path, read_directory(path), config["text_config"], "model.language_model.", mtp)
    model, stored = replace(model, mtp=MTPConfig(layers=taken.layers)), taken.stored
    mapping = name_mapping(model, stored_experts(stored))
    check_shapes(mapping.theirs, {name: tensor.shape for name, tensor in stored.items()}, str(path))
    return HfRows(path, model, mapping, stored, taken.left_out)


def open_ours(path: Path, verify: bool = False) -> OurRows:
    """A step's directory, a run's checkpoints, or a run. `verify`: sha256 of every file first. Raises ReadError,
    MismatchError."""
    checkpoint = open_checkpoint(path, verify=verify)
    model = from_dict({"experiment": "convert", "model": checkpoint.manifest.model}).model
    shapes = {name: checkpoint.tensors[name].shape for name in checkpoint.weights}
    check_shapes(name_mapping(model).ours, shapes, str(checkpoint.path))
    return OurRows(checkpoint.path, model, checkpoint)


def open_rows(path: Path) -> Rows:
    """Whichever of the two it is."""
    return open_hf(path) if (path / CONFIG).is_file() else open_ours(path)

"""Reads a checkpoint without a distributed world: its manifest, its state, and any part of any tensor.

`docs/checkpoint_format.md` shows how to use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.archive import read_chunk
from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.index import Chunk, TensorRecord, read_index
from megatron_glmv.checkpoint.manifest import Json, Manifest, file_problem, read_manifest

OPTIMIZER = "optimizer.state."
"""Prefix of the optimizer's tensors: optimizer.state.{param,exp_avg,exp_avg_sq}.<name of the weight>."""
STATE_FILE = "state.json"
MCORE_CONFIG = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
MCORE_CONFIG_FILE = "metadata.json"
"""megatron-core takes a directory for a distributed checkpoint when it has this file."""


@dataclass(frozen=True)
class Box:
    """A box of a tensor that somebody wants, and where to put it: `target` has the shape of the box."""

    name: str
    offset: tuple[int, ...]
    target: torch.Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint on disk. Nothing but the manifest is read before it is asked for."""

    path: Path
    manifest: Manifest

    @cached_property
    def tensors(self) -> dict[str, TensorRecord]:
        """Name, dtype, shape and place of every tensor, the optimizer's too."""
        return read_index(self.path)

    @property
    def weights(self) -> list[str]:
        """Names of the model's tensors."""
        return [name for name in self.tensors if not name.startswith(OPTIMIZER)]

    @cached_property
    def _state(self) -> Json:
        try:
            content = json.loads((self.path / STATE_FILE).read_text("utf-8"))
            if content["step"] != self.manifest.step or not isinstance(content["trainer"], dict):
                raise ValueError("not the state of this step")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReadError(f"{self.path / STATE_FILE} cannot be read: {error}") from None
        return dict(content)

    @property
    def state(self) -> Json:
        """What the trainer saved beside the tensors (step, tokens, samples, position in the data, ...)."""
        return dict(self._state["trainer"])

    @property
    def optimizer_step(self) -> int:
        """Updates the optimizer has made; Adam's bias correction counts them."""
        return int(self._state["optimizer_step"])

    def parse(self) -> None:
        """Reads index and state now. Raises ReadError."""
        _ = self.tensors, self.state

    def problems(self, verify: bool = True, part: int = 0, parts: int = 1) -> list[str]:
        """What is wrong with the files, empty if nothing. `part` of `parts`: a share of them, to spread the work."""
        files = sorted(self.manifest.files.items())[part::parts]
        found = [file_problem(self.path, name, record, verify) for name, record in files]
        if part == 0 and self.path.stat().st_mode & 0o002:
            found.append(f"the directory can be written by every user (chmod -R o-w {self.path})")
        return [problem for problem in found if problem]

    def tensor(self, name: str) -> torch.Tensor:
        """The full tensor on the CPU. Raises KeyError for an unknown name, ReadError if its bytes are not sound."""
        record = self.tensors[name]
        return self.read(name, (0,) * len(record.shape), record.shape)

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        """A box of a tensor on the CPU, in the dtype it was saved in."""
        target = torch.empty(shape, dtype=self.tensors[name].dtype)
        self.fill([Box(name, offset, target)])
        return target

    def fill(self, boxes: Iterable[Box]) -> None:
        """Copies many boxes into their targets (any device or dtype), reading each chunk once, file by file.

        Memory: one chunk at a time. Raises ReadError.
        """
        wanted: dict[Chunk, list[Box]] = {}
        for box in boxes:
            record = self.tensors[box.name]
            _check_box(record, box)
            for chunk in record.chunks:
                if all(o < co + cs and co < o + s for o, s, co, cs in _axes(box, chunk)):
                    wanted.setdefault(chunk, []).append(box)
        by_file: dict[str, list[Chunk]] = {}
        for chunk in wanted:
            by_file.setdefault(chunk.file, []).append(chunk)
        for name, chunks in by_file.items():
            if name not in self.manifest.files:
                raise ReadError(f"{self.path / name} is not in the manifest")
            try:
                with (self.path / name).open("rb") as file:
                    for chunk in sorted(chunks, key=lambda chunk: chunk.start):
                        tensor = read_chunk(file, chunk, self.tensors[wanted[chunk][0].name].dtype)
                        for box in wanted[chunk]:
                            _copy(tensor, chunk, box)
            except ReadError as error:
                raise ReadError(f"{self.path / name}: {error}") from None
            except OSError as error:
                raise ReadError(f"{self.path / name} cannot be read: {error}") from None


def open_checkpoint(path: str | Path, verify: bool = False) -> Checkpoint:
    """Opens a checkpoint directory, or the newest one of a run directory or of its `checkpoints`.

    `verify` compares every file with its sha256 (reads everything once); sizes are always compared.
    Raises ReadError.
    """
    directory = resolve(Path(path))
    checkpoint = Checkpoint(directory, read_manifest(directory))
    problems = checkpoint.problems(verify)
    if problems:
        raise ReadError(f"{directory}: {'; '.join(problems)}")
    return checkpoint


def differing_tensors(ours: Checkpoint, theirs: Checkpoint, optimizer: bool = True) -> list[str]:
    """Names of tensors that are missing on one side or not equal in every bit; NaN equals the same NaN."""
    names = {n for n in {*ours.tensors, *theirs.tensors} if optimizer or not n.startswith(OPTIMIZER)}
    return sorted(name for name in names if not _same(ours, theirs, name))


def _same(ours: Checkpoint, theirs: Checkpoint, name: str) -> bool:
    if name not in ours.tensors or name not in theirs.tensors:
        return False
    left, right = ours.tensor(name), theirs.tensor(name)
    same_kind = left.dtype == right.dtype and left.shape == right.shape
    return same_kind and torch.equal(left.view(-1).view(torch.uint8), right.view(-1).view(torch.uint8))


def resolve(path: Path) -> Path:
    if not path.is_dir():
        raise ReadError(f"{path} is not a directory")
    for root in (path / "checkpoints", path):
        steps = store.committed(root)
        if steps:
            return store.directory_of(root, steps[-1])
    return path


def _axes(box: Box, chunk: Chunk) -> Iterable[tuple[int, int, int, int]]:
    """Per axis: offset and length of the box, offset and length of the chunk."""
    return zip(box.offset, box.target.shape, chunk.offset, chunk.shape, strict=True)


def _check_box(record: TensorRecord, box: Box) -> None:
    shape = tuple(box.target.shape)
    same = len(box.offset) == len(shape) == len(record.shape)
    if not same or any(o < 0 or o + s > w for o, s, w in zip(box.offset, shape, record.shape, strict=True)):
        raise ReadError(f"{record.name} has shape {record.shape}; {box.offset} + {shape} is not inside")


def _copy(tensor: torch.Tensor, chunk: Chunk, box: Box) -> None:
    source, target = [], []
    for o, s, co, cs in _axes(box, chunk):
        low, high = max(o, co), min(o + s, co + cs)
        source.append(slice(low - co, high - co))
        target.append(slice(low - o, high - o))
    box.target[tuple(target)].copy_(tensor[tuple(source)])

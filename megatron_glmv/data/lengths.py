"""What every sample measures in tokens, known before anything is decoded and kept in a file beside the index.

The file's name is the fingerprint of all that decides a length: index, tokenizer, template, pixel budgets, frame
sampling, patch size. Ranks that start together take turns at a lock, so that one of them counts and the others read.

Shapes: n samples of the data set.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.index import HEADER, ShardDataset
from megatron_glmv.data.locks import turn
from megatron_glmv.data.patches import plan
from megatron_glmv.data.progress import track
from megatron_glmv.data.sample import SampleLayout, lay_out
from megatron_glmv.data.tokenizer import Tokenizer

_VERSION = 3
"""Raised when the template or the layout of a sample changes what the same data measure."""

_COLUMNS = ("tokens", "trained", "visual", "patches", "frames", "media")


@dataclass(frozen=True, eq=False)
class Lengths:
    """Measures of each sample, each [n] int64. A sample that cannot be used has 0 tokens and a reason in `errors`."""

    tokens: NDArray[np.int64]
    trained: NDArray[np.int64]
    """Tokens with loss."""
    visual: NDArray[np.int64]
    """Visual tokens, part of `tokens`."""
    patches: NDArray[np.int64]
    """Patches of the vision encoder: its cost."""
    frames: NDArray[np.int64]
    """Sampled frames of videos."""
    media: NDArray[np.int64]
    """Images and videos."""
    errors: dict[int, str]
    """Sample index -> why it cannot be used."""

    @property
    def pictures(self) -> NDArray[np.int64]:
        """[n] images and temporal patches: what attends to itself in the vision encoder (a video counts once more)."""
        return self.media + self.frames // 2


class Layouts:
    """Sample index -> SampleLayout under one tokenizer and config; the same in the ranks and in their workers."""

    def __init__(self, dataset: ShardDataset, tokenizer: Tokenizer, data: DataConfig, vision: VisionConfig) -> None:
        self.dataset, self.tokenizer, self.data, self.vision = dataset, tokenizer, data, vision

    def __call__(self, i: int) -> SampleLayout:
        """Raises SampleError(key of the sample, reason) where it cannot be used."""
        entry = self.dataset.entry(i)
        if entry.reason:
            raise SampleError(entry.key, entry.reason)
        try:
            plans = [plan(facts, self.data, self.vision) for facts in entry.media]
            conversation = self.dataset.conversation(i)
            return lay_out(conversation, plans, self.tokenizer, self.data.template, self.vision.merge)
        except SampleError as error:
            reason = error.reason if error.key in (entry.key, "?") else f"{error.key}: {error.reason}"
            raise SampleError(entry.key, reason) from error

    def fingerprint(self) -> str:
        """Hash of everything that decides a length."""
        data, vision = self.data, self.vision
        parts = {
            "version": _VERSION,
            "index": hashlib.sha256((self.dataset.directory / HEADER).read_bytes()).hexdigest(),
            "tokenizer": self.tokenizer.fingerprint,
            "template": data.template,
            "pixels": [data.image_min_pixels, data.image_max_pixels, data.video_min_pixels, data.video_max_pixels],
            "frames": [data.video_fps, data.video_max_frames],
            "caps": [data.max_media_bytes, data.max_image_pixels],
            "patch": [vision.patch, vision.temporal_patch, vision.merge],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def measure(layouts: Layouts) -> Lengths:
    """Read the lengths of a data set, or lay out every sample once and write them.

    Where the data directory cannot be written, every process counts for itself.
    """
    directory = layouts.dataset.directory / "lengths"
    path = directory / f"{layouts.fingerprint()}.safetensors"
    known = _read(path, len(layouts.dataset))
    if known is not None:
        return known
    try:
        directory.mkdir(exist_ok=True)
        with turn(directory / ".lock"):
            known = _read(path, len(layouts.dataset))
            if known is None:
                known = _count(layouts)
                _write(path, known)
            return known
    except OSError:
        return _count(layouts)


def _count(layouts: Layouts) -> Lengths:
    n = len(layouts.dataset)
    rows = np.zeros((len(_COLUMNS), n), dtype=np.int64)
    errors: dict[int, str] = {}
    for i in track(range(n), "counting tokens", n):
        try:
            layout = layouts(i)
        except SampleError as error:
            errors[i] = error.reason
            continue
        frames = sum(len(p.frames) for p in layout.plans)
        trained = int((layout.loss_weights > 0).sum())
        visual = len(layout.visual_positions)
        rows[:, i] = (len(layout), trained, visual, layout.patches, frames, len(layout.plans))
    return Lengths(**dict(zip(_COLUMNS, rows, strict=True)), errors=errors)


def _read(path: Path, n: int) -> Lengths | None:
    """None where there is no such file, or not a whole one for n samples."""
    try:
        with safe_open(path, framework="np") as file:
            columns = {name: file.get_tensor(name) for name in _COLUMNS}
            errors = json.loads((file.metadata() or {})["errors"])
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    if any(column.shape != (n,) for column in columns.values()):
        return None
    return Lengths(**columns, errors={int(i): str(reason) for i, reason in errors.items()})


def _write(path: Path, lengths: Lengths) -> None:
    columns = {name: np.ascontiguousarray(getattr(lengths, name)) for name in _COLUMNS}
    errors = {str(i): reason for i, reason in lengths.errors.items()}
    raw = save(columns, metadata={"errors": json.dumps(errors)})
    partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.partial")
    partial.write_bytes(raw)
    partial.replace(path)

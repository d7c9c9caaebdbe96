"""What transformers' Glm4v processor makes, as packs: one row of the batch becomes one pack.

A run of equal mm_token_type_ids (1: image, 2: video) is one picture: an image, or one temporal patch of a video. Runs
take the rows of image_grid_thw and the temporal patches of video_grid_thw in order, over all rows of the batch.

Shapes: B rows, S tokens of a row with padding, L without, N patches, V values of a patch, T tokens of a pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from megatron_glmv.config.schema import ModelConfig
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.packing import aligned
from megatron_glmv.data.positions import Picture, mrope_positions
from megatron_glmv.data.types import PackedBatch

TEXT_NAMES = ("input_ids", "attention_mask", "mm_token_type_ids")
MEDIA_NAMES = {1: ("pixel_values", "image_grid_thw"), 2: ("pixel_values_videos", "video_grid_thw")}
"""Pixels and grids by what mm_token_type_ids says."""
NAMES = frozenset({*TEXT_NAMES, *(name for pair in MEDIA_NAMES.values() for name in pair)})


@dataclass(frozen=True, eq=False)
class Row:
    """One row without its padding."""

    number: int
    columns: torch.Tensor
    """[L] int64: where its tokens stand in the row of S, padding on either side or in between."""
    input_ids: torch.Tensor
    """[L] int64."""
    position_ids: torch.Tensor
    """[3, L] int64."""
    grids: torch.Tensor
    """[pictures, 3] int64: (1, h, w) of each."""
    pixel_values: torch.Tensor
    """[N, V] float: normalised patches of its pictures, in their order."""
    visual_positions: torch.Tensor
    """[M] int64: index among the L tokens of each placeholder."""

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True, eq=False)
class ScoreInput:
    """A batch of rows."""

    rows: tuple[Row, ...]
    shape: tuple[int, int]
    """(B, S)."""

    @property
    def longest(self) -> int:
        return max(len(row) for row in self.rows)

    @property
    def predicted(self) -> int:
        """Tokens that have a token of their row before them: those whose likelihood is asked for."""
        return sum(max(len(row) - 1, 0) for row in self.rows)


def read_score_input(path: Path, model: ModelConfig) -> ScoreInput:
    """Reads and checks the file. Raises DataError, which names the tensor that does not fit."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(path, f"cannot be read as safetensors: {error}") from error
    if unknown := sorted(tensors.keys() - NAMES):
        raise DataError(path, f"{', '.join(unknown)}: not of the processor's outputs {', '.join(sorted(NAMES))}")
    if "input_ids" not in tensors:
        raise DataError(path, "has no input_ids")
    ids = tensors["input_ids"].long()
    if ids.dim() != 2 or not ids.numel():
        raise DataError(path, f"input_ids has shape {tuple(ids.shape)}, expected [rows, tokens]")
    if ids.min() < 0 or ids.max() >= model.text.vocab:
        raise DataError(path, f"input_ids go from {ids.min()} to {ids.max()}, the vocabulary has {model.text.vocab}")
    mask = _like_ids(path, tensors, "attention_mask", ids, torch.ones_like(ids))
    kinds = _like_ids(path, tensors, "mm_token_type_ids", ids, torch.zeros_like(ids))
    if not mask.any():
        raise DataError(path, "attention_mask leaves no token")
    supply = {kind: _pictures(path, tensors, kind, model) for kind in MEDIA_NAMES}
    rows = [_row(path, i, ids[i], mask[i].bool(), kinds[i], supply, model) for i in range(len(ids))]
    for kind, left in supply.items():
        if (over := sum(1 for _ in left)) > 0:
            raise DataError(path, f"{MEDIA_NAMES[kind][1]} has {over} pictures more than mm_token_type_ids has runs")
    return ScoreInput(tuple(row for row in rows if len(row)), (ids.shape[0], ids.shape[1]))


def _like_ids(
    path: Path, tensors: Mapping[str, torch.Tensor], name: str, ids: torch.Tensor, default: torch.Tensor
) -> torch.Tensor:
    found = tensors.get(name)
    if found is None:
        return default
    if found.shape != ids.shape:
        raise DataError(path, f"{name} has shape {tuple(found.shape)}, input_ids has {tuple(ids.shape)}")
    return found.long()


def _pictures(
    path: Path, tensors: Mapping[str, torch.Tensor], kind: int, model: ModelConfig
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """(height, width, patches [h x w, V]) of each image, or of each temporal patch of each video."""
    pixels_name, grid_name = MEDIA_NAMES[kind]
    grids, pixels = tensors.get(grid_name), tensors.get(pixels_name)
    if (grids is None) != (pixels is None):
        raise DataError(path, f"{pixels_name} and {grid_name} belong together, one of them is missing")
    if grids is None or pixels is None:
        return iter(())
    values, merge = model.vision.patch_values, model.vision.merge
    if grids.dim() != 2 or grids.shape[1] != 3 or (grids < 1).any() or (grids[:, 1:] % merge).any():
        raise DataError(path, f"{grid_name} must be rows of (t, h, w) with h and w multiples of {merge}")
    if kind == 1 and (grids[:, 0] != 1).any():
        raise DataError(path, f"{grid_name}: an image has t = 1")
    total = int(grids.prod(-1).sum())
    if tuple(pixels.shape) != (total, values):
        raise DataError(path, f"{pixels_name} has shape {tuple(pixels.shape)}, the grids need {(total, values)}")
    sizes = [(int(h), int(w)) for t, h, w in grids.tolist() for _ in range(t)]
    parts = torch.split(pixels.float(), [h * w for h, w in sizes])
    return iter([(h, w, part) for (h, w), part in zip(sizes, parts, strict=True)])


def _row(
    path: Path,
    number: int,
    ids: torch.Tensor,
    mask: torch.Tensor,
    kinds: torch.Tensor,
    supply: Mapping[int, Iterator[tuple[int, int, torch.Tensor]]],
    model: ModelConfig,
) -> Row:
    merge = model.vision.merge
    ids, kinds = ids[mask], kinds[mask]
    pictures: list[Picture] = []
    patches = [torch.zeros(0, model.vision.patch_values)]
    grids: list[tuple[int, int, int]] = []
    for kind, start, length in _runs(kinds.tolist()):
        if kind == 0:
            continue
        if kind not in supply:
            raise DataError(path, f"mm_token_type_ids has {kind} in row {number}; 0, 1 and 2 have a meaning")
        height, width, part = next(supply[kind], (0, 0, patches[0]))
        if length != height * width // merge**2:
            what = f"a picture of {height} x {width} patches" if height else "none left"
            raise DataError(
                path, f"row {number} has {length} placeholders from token {start}; {MEDIA_NAMES[kind][1]} has {what}"
            )
        pictures.append(Picture(start, height // merge, width // merge))
        grids.append((1, height, width))
        patches.append(part)
    return Row(
        number=number,
        columns=mask.nonzero()[:, 0],
        input_ids=ids,
        position_ids=torch.from_numpy(mrope_positions(len(ids), pictures)),
        grids=torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
        pixel_values=torch.cat(patches),
        visual_positions=kinds.nonzero()[:, 0],
    )


def _runs(kinds: list[int]) -> Iterator[tuple[int, int, int]]:
    """(kind, start, length) of each run of equal values."""
    start = 0
    for i in range(1, len(kinds) + 1):
        if i == len(kinds) or kinds[i] != kinds[start]:
            yield kinds[start], start, i - start
            start = i


def as_pack(row: Row | None, tokens: int, patch_values: int) -> PackedBatch:
    """A row in a pack of `tokens`; every token after the first has loss weight 1. None: a pack of padding alone.

    Its pixel_values stay empty: they are uint8 there, and here normalised already.
    """
    length = len(row) if row is not None else 0
    ids = torch.zeros(tokens, dtype=torch.int64)
    positions = torch.zeros(3, tokens, dtype=torch.int64)
    if row is not None:
        ids[:length], positions[:, :length] = row.input_ids, row.position_ids
    predicting = torch.arange(tokens) < length - 1
    end = aligned(length)
    boundaries = [0, *([end] if 0 < end < tokens else []), tokens]
    return PackedBatch(
        input_ids=ids,
        labels=torch.where(predicting, ids.roll(-1), 0),
        loss_weights=predicting.float(),
        position_ids=positions,
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
        padding=torch.arange(tokens) >= length,
        pixel_values=torch.zeros(0, patch_values, dtype=torch.uint8),
        grids=row.grids if row is not None else torch.zeros(0, 3, dtype=torch.int64),
        visual_positions=row.visual_positions if row is not None else torch.zeros(0, dtype=torch.int64),
        sample_ids=(str(row.number),) if row is not None else (),
    )

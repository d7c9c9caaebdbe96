"""The files that `glmv score` writes: each complete, or not there at all.

Shapes: B rows, S tokens, L tokens of a row without padding, W vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_glmv.checkpoint.hf.mapping import name_mapping
from megatron_glmv.checkpoint.reader import Checkpoint
from megatron_glmv.config.schema import ModelConfig
from megatron_glmv.data.types import Json
from megatron_glmv.inference.score_inputs import ScoreInput


def write_scores(out: Path, batch: ScoreInput, folder: Path, summary: Json, vocabulary: int | None) -> None:
    """Puts the rows that ranks left in `folder` at their places; 0 on padding. `vocabulary` None: without logits."""
    rows, width = batch.shape
    made = {
        "logprobs": torch.zeros(rows, width - 1),
        "position_ids": torch.zeros(3, rows, width, dtype=torch.int64),
    }
    if vocabulary is not None:
        made["logits"] = torch.zeros(rows, width, vocabulary)
    for row in batch.rows:
        made["position_ids"][:, row.number, row.columns] = row.position_ids
        for part in sorted(folder.glob(f"row_{row.number}_*.safetensors")):
            with safe_open(part, "pt") as found:
                tokens = found.get_tensor("tokens")
                before_last = tokens < len(row) - 1
                columns = row.columns[tokens]
                made["logprobs"][row.number, columns[before_last]] = found.get_tensor("logprobs")[before_last]
                if vocabulary is not None:
                    made["logits"][row.number, columns] = found.get_tensor("logits")
    unfinished = out.with_name(f".{out.name}.unfinished")
    save_file(made, unfinished, metadata=_metadata(summary))
    unfinished.replace(out)


def write_gradients(out: Path, gradients: Checkpoint, model: ModelConfig, summary: Json) -> None:
    """Gradients under the names that a checkpoint of transformers has on disk, fp32, without the expert bias (which has
    none). One tensor of ours is in memory at a time."""
    mapping = name_mapping(model)
    shapes = {name: shaped.shape for name, shaped in mapping.theirs.items() if not shaped.exact}

    def tensors() -> Iterator[torch.Tensor]:
        held, tensor = "", torch.empty(0)
        for name in shapes:
            ours = mapping.sources[name].ours.name
            if ours != held:
                held, tensor = ours, gradients.tensor(ours).float()
            yield mapping.tensor_of_theirs(name, tensor)

    unfinished = out.with_name(f".{out.name}.unfinished")
    write_fp32(unfinished, shapes, tensors(), _metadata(summary))
    unfinished.replace(out)


def write_fp32(
    path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """A safetensors file of float32 tensors that are made one by one, in the order of `shapes`.

    Format: 8 bytes length of the header (little endian), the header in JSON padded with spaces, the tensors.
    """
    header: Json = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape, tensor in zip(shapes.values(), tensors, strict=True):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} where {shape} was announced")
            file.write(tensor.float().contiguous().cpu().numpy().tobytes())


def _metadata(summary: Json) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in summary.items()}

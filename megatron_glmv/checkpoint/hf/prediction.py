"""The multi-token prediction layer in a checkpoint of transformers': kept or left behind.

It is layer N of N decoder layers counted from 0, with enorm, hnorm, eh_proj and shared_head.norm beside what a decoder
layer has (GLM-4.5-Air, as vLLM and SGLang read it). Embedding and head are the model's own; some files hold copies of
both under the layer's name, which are left out where they are copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.hf.safetensors import Stored, read_bytes
from megatron_glmv.config.errors import ConfigError

CLAIM = "num_nextn_predict_layers"
"""The field of a text config that says how many there are."""
SLICE = 16 << 20
"""Bytes compared at a time."""


@dataclass(frozen=True)
class Taken:
    """A checkpoint's tensors with or without the layer."""

    stored: dict[str, Stored]
    layers: int
    """Prediction layers among them: 0 or 1."""
    left_out: tuple[str, ...]
    """Names of those that were left behind."""


def take_prediction(
    path: Path, stored: Mapping[str, Stored], text: Mapping[str, Any], prefix: str, wanted: bool | None
) -> Taken:
    """`text`: the decoder's config; `prefix`: what its names begin with, as `model.`; `wanted` None: if it is there.

    Raises ConfigError where a layer is wanted that is not there, MismatchError for one with an embedding or head of
    its own. Layers that the config does not claim are no prediction layers, and stay for the caller to refuse.
    """
    claimed, first = int(text.get(CLAIM) or 0), int(text.get("num_hidden_layers") or 0)
    begins = tuple(f"{prefix}layers.{first + i}." for i in range(claimed))
    theirs = [name for name in stored if name.startswith(begins or "\0")]
    if wanted and (claimed != 1 or not theirs):
        what = "has no prediction layer" if claimed < 2 else f"has {claimed} prediction layers, and one can be kept"
        raise ConfigError("--mtp", True, f"{path} {what}", "leave it out")
    if wanted is False or not theirs or claimed != 1:
        kept = {name: tensor for name, tensor in stored.items() if name not in set(theirs)}
        return Taken(kept, 0, tuple(theirs))
    copies = {
        f"{begins[0]}embed_tokens.weight": f"{prefix}embed_tokens.weight",
        f"{begins[0]}shared_head.head.weight": "lm_head.weight",
    }
    for copy, original in copies.items():
        if copy in stored and not _equal(stored[copy], stored.get(original)):
            raise MismatchError(
                f"{path}: {copy} is another tensor than {original}; the prediction layer here shares it with the model"
            )
    return Taken({name: tensor for name, tensor in stored.items() if name not in copies}, 1, ())


def _equal(a: Stored, b: Stored | None) -> bool:
    """In every bit."""
    if b is None or (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    total = torch.Size(a.shape).numel() * a.dtype.itemsize
    for start in range(0, total, SLICE):
        sides = []
        for side in (a, b):
            out = torch.empty(min(SLICE, total - start), dtype=torch.uint8)
            read_bytes(side.file, side.start + start, out)
            sides.append(out)
        if not torch.equal(*sides):
            return False
    return True

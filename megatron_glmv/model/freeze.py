"""Parts of the model that a stage does not train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from megatron_glmv.config.schema import PARTS

_MERGER = ("downsample.", "merger.")


def part_of(name: str) -> str:
    """The part (one of PARTS) that a parameter of GLMV belongs to, by its name: vision is the ViT with its patch and
    position embeddings, merger what brings its output to the decoder's width, decoder the language model whole."""
    owner, _, rest = name.partition(".")
    if owner == "language":
        return "decoder"
    return "merger" if rest.startswith(_MERGER) else "vision"


def parameters_of(chunks: list[Any], parts: tuple[str, ...]) -> Iterator[torch.nn.Parameter]:
    """The parameters of some parts, in model chunks with or without their precision wrapper."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if part_of(name.removeprefix("module.")) in parts:
                yield parameter


def freeze(chunks: list[Any], parts: tuple[str, ...]) -> None:
    """Switches gradients off, before DDP and the optimizer are built: they then make neither gradient buffers nor
    states for these parameters. Gradients still flow through a frozen part to what lies before it."""
    assert set(parts) <= set(PARTS)
    for parameter in parameters_of(chunks, parts):
        parameter.requires_grad_(False)

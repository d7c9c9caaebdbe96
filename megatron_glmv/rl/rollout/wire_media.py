"""Our pixels in the form in which vLLM's token-in, token-out endpoint takes processed media.

Sent are the very patches that training sees, so that nothing is decoded, resized or expanded a second time. A temporal
patch of a video is an image of its own: GLM gives each one its own run of placeholders and its own positions, and
the encoder looks at each alone.

The format is that of `vllm/entrypoints/scale_out/token_in_token_out/mm_serde.py` (vLLM 0.32): base64 of a MessagePack
map {field: {"data": [dtype, shape, extension 3 with the bytes], "field": [kind, arguments]}}. Of MessagePack
(https://github.com/msgpack/msgpack/blob/master/spec.md) only what this needs is written. Pixels go as bytes: the
server normalises them on its device (its default, `--mm-device-do-normalize`; with that off every answer to a picture
fails the gate).

Shapes: N patches of a frame, V values of a patch, M visual tokens of a frame.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron_glmv.config.schema import VisionConfig
from megatron_glmv.inference.media import MediaFile
from megatron_glmv.inference.prompts import Prompt

RAW_VIEW = 3
"""vLLM's extension code for bytes of a tensor."""


@dataclass(frozen=True)
class Frame:
    """An image, or two frames of a video that the encoder sees as one."""

    key: str
    """Hash of the medium and the place in it."""
    offset: int
    """Token of the prompt at which its placeholders begin."""
    length: int
    data: str
    """Pixels and grid, base64."""


def frames_of(prompt: Prompt, pixels: dict[str, torch.Tensor], vision: VisionConfig) -> Iterator[Frame]:
    """Of all media of a prompt, in order. `pixels`: uint8 [N, V] by key of the medium."""
    places, at = prompt.visual_positions.tolist(), 0
    for medium in prompt.media:
        grid = medium.plan.grid
        rows, tokens = grid.h * grid.w, grid.h * grid.w // vision.merge**2
        for number in range(grid.t):
            first = places[at]
            if places[at : at + tokens] != list(range(first, first + tokens)):
                raise ValueError(f"the placeholders of {medium.path} at token {first} do not follow each other")
            part = pixels[medium.key][number * rows : (number + 1) * rows]
            yield Frame(_key(medium, number), first, tokens, pack_image(part, grid.h, grid.w))
            at += tokens


def _key(medium: MediaFile, number: int) -> str:
    return hashlib.sha256(f"{medium.key} {number}".encode()).hexdigest()


def pack_image(pixels: torch.Tensor, height: int, width: int) -> str:
    """uint8 [N, V] and the grid of one frame, as vLLM's Glm4v models name them."""
    rows = len(pixels)
    flat = ["flat", {"keep_on_cpu": False, "slices": [[0, rows, None]], "dim": 0}]
    item = {
        "pixel_values": {"data": _tensor(pixels), "field": flat},
        "image_grid_thw": {
            "data": _tensor(torch.tensor([1, height, width])),
            "field": ["batched", {"keep_on_cpu": True}],
        },
    }
    return base64.b64encode(b"".join(_write(item))).decode()


@dataclass(frozen=True)
class _Extension:
    code: int
    data: bytes


def _tensor(tensor: torch.Tensor) -> list[Any]:
    data = tensor.detach().cpu().contiguous().numpy().tobytes()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), _Extension(RAW_VIEW, data)]


def _write(value: Any) -> Iterator[bytes]:
    match value:
        case None:
            yield b"\xc0"
        case bool():
            yield b"\xc3" if value else b"\xc2"
        case int():
            yield struct.pack(">Bq", 0xD3, value)
        case str():
            text = value.encode()
            yield struct.pack(">BI", 0xDB, len(text)) + text
        case list():
            yield struct.pack(">BI", 0xDD, len(value))
            for item in value:
                yield from _write(item)
        case dict():
            yield struct.pack(">BI", 0xDF, len(value))
            for key, item in value.items():
                yield from _write(key)
                yield from _write(item)
        case _Extension():
            yield struct.pack(">BIb", 0xC9, len(value.data), value.code) + value.data
        case _:
            raise TypeError(f"{type(value).__name__} has no place in what is sent")

"""A small indexed data set of images, VP9 clips and text, some of it bad, as the loader's tests need it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from data.media_files import clip
from PIL import Image

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.index import ShardDataset, build_index
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.tokenizer import Tokenizer, train_tokenizer

VISION = VisionConfig(depth=1, hidden=8, heads=1, ffn=8, merger_ffn=8)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230)}
TRUNCATED = "image-013"
"""An image whose header is sound and whose pixels are cut off: only decoding finds out."""
UNREADABLE = "image-005"
"""An image that is none: the index knows."""


def data_config(**options: Any) -> DataConfig:
    return DataConfig(**{"pack_tokens": 512, "pack_window": 16, "workers": 0, "quarantine_budget": 0.5} | options)


def png(number: int, side: int = 84) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 60, (side, side, 3)).astype(np.uint8)
    pixels[20:60, 20:60] = list(COLOURS.values())[number % 3]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def ask(kind: str, name: str, turns: list[tuple[str, str]]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if kind:
        question = messages[0]["content"]
        messages[0]["content"] = [{"type": kind, kind: name}, {"type": "text", "text": question}]
    return {"messages": messages, "domain": kind or "text"}


def make(
    directory: Path, *, images: int = 24, clips: int = 3, texts: int = 12, sound: bool = False
) -> tuple[ShardDataset, Tokenizer]:
    """Write shards and index to `directory`/shards and a tokenizer beside them; `sound` leaves the bad images good."""
    shards = directory / "shards"
    with ShardWriter(shards, samples_per_shard=16) as writer:
        for i in range(images):
            key, data = f"image-{i:03d}", png(i, 56 + 28 * (i % 3))
            if not sound:
                data = data[: len(data) // 2] if key == TRUNCATED else b"not a png" if key == UNREADABLE else data
            turns = [("What colour?", list(COLOURS)[i % 3]), ("How many?", str(i % 10))]
            writer.add(key, {"id": key, **ask("image", "0.png", turns[: 1 + i % 2])}, {"0.png": data})
        for i in range(clips):
            data = clip(
                "webm", codec="libvpx-vp9", frames=48 + 24 * i, options={"deadline": "realtime", "cpu-used": "8"}
            )
            key = f"clip-{i:03d}"
            writer.add(key, {"id": key, **ask("video", "0.webm", [("Where does it go?", "left")])}, {"0.webm": data})
        for i in range(texts):
            key = f"text-{i:03d}"
            writer.add(key, {"id": key, **ask("", "", [(f"Say {i} " * (3 + 20 * (i % 4)), "left " * (1 + i))])}, {})
    build_index(shards)
    train_tokenizer(
        ["What colour? red green blue How many? Where does it go? left Say"] * 9, directory / "tokenizer", 400
    )
    return ShardDataset(shards), Tokenizer.load(directory / "tokenizer")

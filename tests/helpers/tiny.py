"""A GLM-4.5V small enough for tests, and packs that are pure functions of a number: no files, no decoding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from megatron_glmv.config.schema import (
    Config,
    DataConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    ParallelConfig,
    PrecisionConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from megatron_glmv.data.types import Json, PackedBatch

VOCAB, PACK = 128, 96

VISION = VisionConfig(depth=2, hidden=32, heads=2, ffn=64, merger_ffn=64, patch=4, position_grid=4)
MOE = MoEConfig(experts=4, topk=2, ffn=32, shared_ffn=32, aux_loss=1e-1)
TEXT = TextConfig(
    layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=VOCAB, mrope_section=(1, 1, 2), moe=MOE
)
MODEL = ModelConfig(name="test_glm45v", text=TEXT, vision=VISION)
DENSE = ModelConfig(
    name="test_glm41v", text=replace(TEXT, moe=None, sandwich_norm=True, rotary_interleaved=True), vision=VISION
)


def config(model: ModelConfig = MODEL, precision: str = "fp32", **parallel: Any) -> Config:
    return Config(
        experiment="test",
        model=model,
        parallel=ParallelConfig(**parallel),
        data=DataConfig(path="unused", pack_tokens=PACK),
        optim=OptimConfig(lr=2e-3, min_lr=2e-4, warmup_steps=2, clip_grad=1.0),
        train=TrainConfig(steps=10, global_batch=4, seed=7),
        precision=PrecisionConfig(name=precision),
        platform="cpu",
        backend="torch",
    )


def pack(number: int, vision: VisionConfig = VISION) -> PackedBatch:
    """Pack `number`: a text sample, one with an image, one with a video (two temporal patches), padding. Every fourth
    pack has no image at all. Segments are aligned to 16 tokens."""
    g = torch.Generator().manual_seed(1000 + number)
    layouts: list[list[tuple[int, int, int]]] = [[], [(1, 4, 2 + 2 * (number % 2))], [(2, 2, 4)]]
    if number % 4 == 3:
        layouts = [[], []]
    ids, weights, positions, padding, visual, cu, grids = [], [], [], [], [], [0], []
    for items in layouts:
        start = sum(len(part) for part in ids)
        length = int(torch.randint(18, 31, (), generator=g))
        tokens = (torch.rand(length, generator=g) ** 3 * VOCAB).long()  # skewed, so that ten steps learn something
        where = 3
        ramp = torch.arange(length)
        for t, h, w in items:
            grids.append((t, h, w))
            for _ in range(t):
                count = h * w // 4
                visual.append(torch.arange(start + where, start + where + count))
                where += count + 2
        aligned = -(-length // 16) * 16
        fill = aligned - length
        ids.append(torch.cat([tokens, torch.zeros(fill, dtype=torch.int64)]))
        keep = (torch.rand(length, generator=g) < 0.7).float()
        keep[-1] = 0.0
        weights.append(torch.cat([keep, torch.zeros(fill)]))
        spread = torch.stack([ramp, ramp + number % 3, ramp // 2])
        positions.append(torch.cat([spread, torch.zeros(3, fill, dtype=torch.int64)], dim=1))
        padding.append(torch.arange(aligned) >= length)
        cu.append(start + aligned)
    used = cu[-1]
    rest = PACK - used
    assert rest >= 0
    if rest:
        cu.append(PACK)
    input_ids = torch.cat([*ids, torch.zeros(rest, dtype=torch.int64)])
    patches = sum(t * h * w for t, h, w in grids)
    return PackedBatch(
        input_ids=input_ids,
        labels=torch.cat([input_ids[1:], input_ids[:1]]),
        loss_weights=torch.cat([*weights, torch.zeros(rest)]),
        position_ids=torch.cat([*positions, torch.zeros(3, rest, dtype=torch.int64)], dim=1),
        cu_seqlens=torch.tensor(cu, dtype=torch.int32),
        padding=torch.cat([*padding, torch.ones(rest, dtype=torch.bool)]),
        pixel_values=torch.randint(0, 256, (patches, vision.patch_values), generator=g, dtype=torch.uint8),
        grids=torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
        visual_positions=torch.cat(visual) if visual else torch.empty(0, dtype=torch.int64),
        sample_ids=tuple(f"{number}-{i}" for i in range(len(layouts))),
    )


class Packs:
    """A loader over `pack`, in the order of every loader: replica r of D takes packs r, r + D, ... of a global
    batch."""

    def __init__(self, global_batch: int, dp_rank: int, dp_size: int) -> None:
        self.global_batch, self.dp_rank, self.dp_size, self.position = global_batch, dp_rank, dp_size, 0

    def next_step(self) -> list[PackedBatch]:
        first = self.position * self.global_batch
        self.position += 1
        return [pack(first + i) for i in range(self.dp_rank, self.global_batch, self.dp_size)]

    def state_dict(self) -> Json:
        return {"position": self.position}

    def load_state_dict(self, state: Json) -> None:
        self.position = state["position"]

    def close(self) -> None: ...

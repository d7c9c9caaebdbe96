"""What must hold for the whole model in one process: packs, and packs without images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.schema import Config
from megatron_glmv.data.types import PackedBatch
from megatron_glmv.parallel.topology import Topology


def _model(config: Config) -> Any:
    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all

    groups = init_groups(Topology.resolve(config.parallel, 1))
    seed_all(config.train.seed)
    (model,) = build_model(config, groups, backend="torch", device=torch.device("cpu"))
    return model


def _losses(model: Any, batch: PackedBatch) -> torch.Tensor:
    from megatron_glmv.train.step import model_inputs

    inputs = model_inputs(batch, torch.device("cpu"), model.vision)
    return model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)[0]  # type: ignore[no-any-return]


def _segment(batch: PackedBatch, index: int) -> PackedBatch:
    """One sample of a pack as a pack of its own."""
    start, end = batch.cu_seqlens[index].item(), batch.cu_seqlens[index + 1].item()
    here = (batch.visual_positions >= start) & (batch.visual_positions < end)
    per_item = [t * h * w // 4 for t, h, w in batch.grids.tolist()]
    owner = torch.repeat_interleave(torch.arange(len(per_item)), torch.tensor(per_item, dtype=torch.int64))
    items = owner[here].unique().tolist()
    rows = torch.repeat_interleave(owner, 4)
    return replace(
        batch,
        **{n: getattr(batch, n)[start:end] for n in ("input_ids", "labels", "loss_weights", "padding")},
        position_ids=batch.position_ids[:, start:end],
        cu_seqlens=torch.tensor([0, end - start], dtype=torch.int32),
        pixel_values=batch.pixel_values[torch.isin(rows, torch.tensor(items, dtype=torch.int64))],
        grids=batch.grids[items],
        visual_positions=batch.visual_positions[here] - start,
    )


def _pack_against_singles(config: Config) -> float:
    model = _model(config)
    with torch.no_grad():
        worst = 0.0
        for number in range(3):
            batch = tiny.pack(number)
            whole = _losses(model, batch)
            for index in range(len(batch.sample_ids)):
                start, end = batch.cu_seqlens[index].item(), batch.cu_seqlens[index + 1].item()
                alone = _losses(model, _segment(batch, index))
                worst = max(worst, float((whole[start:end] - alone).abs().max()))
    return worst


def test_a_pack_of_samples_is_its_samples_one_by_one() -> None:
    for model in (tiny.MODEL, tiny.DENSE):
        assert run_ranks(_pack_against_singles, 1, tiny.config(model))[0] < 2e-5


def _gradients_without_images(config: Config) -> tuple[int, int, float]:
    model = _model(config)
    batch = tiny.pack(3)
    assert len(batch.grids) == 0
    _losses(model, batch).sum().backward()
    vision = list(model.vision.parameters())
    touched = [p for p in vision if p.grad is not None]
    return len(vision), len(touched), float(sum(p.grad.abs().sum() for p in touched))


def test_a_pack_without_images_touches_every_encoder_parameter_with_zero() -> None:
    """Gradient reduction that overlaps the backward pass waits for every parameter: one left out is a hang."""
    parameters, touched, total = run_ranks(_gradients_without_images, 1, tiny.config())[0]
    assert touched == parameters > 0
    assert total == 0.0

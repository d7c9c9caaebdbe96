"""What must hold for the whole model: packs, packs without images, norms behind sublayers, gradients of the encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from dist.checkpoint_job import Job
from helpers import tiny
from helpers.ranks import run_ranks
from numpy.linalg import norm

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


def _sandwich(config: Config) -> tuple[float, float]:
    """Largest difference between a layer and its definition, and what each of the two norms matters."""
    layer = _model(config).language.decoder.layers[1]
    with torch.no_grad():
        for behind in (layer.post_self_attn_layernorm, layer.post_mlp_layernorm):
            behind.weight.uniform_(0.5, 2.0)
        x = torch.randn(8, 1, config.model.text.hidden)
        attended, _ = layer.self_attention(layer.input_layernorm(x), None)
        middle = x + layer.post_self_attn_layernorm(attended)
        fed, _ = layer.mlp(layer.pre_mlp_layernorm(middle))
        expected = middle + layer.post_mlp_layernorm(fed)
        ours, _ = layer(x, None)
        matters = min(float((n(t) - t).abs().max()) for n, t in (
            (layer.post_self_attn_layernorm, attended), (layer.post_mlp_layernorm, fed)
        ))  # fmt: skip
        return float((ours - expected).abs().max()), matters


def test_sandwich_norms_stand_behind_attention_and_mlp() -> None:
    """x += norm(attention(norm(x))); x += norm(mlp(norm(x))), as GLM-4.1V has it."""
    difference, matters = run_ranks(_sandwich, 1, tiny.config(tiny.DENSE))[0]
    assert difference < 1e-6
    assert matters > 1e-1


def _encoder_gradients(config: Config) -> dict[str, Any]:
    """Gradients of the encoder's parameters in the first step, as arrays."""
    job = Job(config)
    job.train_step()
    named = ((n, p) for chunk in job.trainer.chunks for n, p in chunk.named_parameters() if ".vision." in n)
    return {name: p.main_grad.clone().numpy() for name, p in named}


def test_each_encoder_gradient_is_that_of_one_process_when_its_work_is_spread() -> None:
    """Every tensor, by its norm; without clipping, which would hide a common factor."""

    def run(**parallel: Any) -> list[dict[str, Any]]:
        made = tiny.config(**parallel)
        made = replace(made, optim=replace(made.optim, clip_grad=0.0))
        return run_ranks(_encoder_gradients, Topology.resolve(made.parallel, None).world, made)

    (right,) = run()
    assert len(right) > 20
    for rank in run(tensor=2):
        assert rank.keys() == right.keys()
        for name, gradient in rank.items():
            assert norm(gradient - right[name]) < 1e-4 * norm(right[name]), name

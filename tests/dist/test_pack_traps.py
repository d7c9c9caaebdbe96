"""What a pack's order, its token values and its cuts must not change: traps that other stacks have fallen into.

Derivation. A sample's tokens attend within the sample only, positions restart in it, and experts are chosen token by
token, so every token's loss is a function of its sample alone, and gradients are sums over tokens: both are unchanged
when samples change places in the pack, up to the order of fp32 sums (bounds 2e-5 in a loss of about 5, 1e-4 in the norm
of each tensor's gradient). Padding is known by its mask, never by a token's value.

Not covered: that a pack's samples are those alone (test_model_invariants.py), layouts (test_layout_table.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from dist.test_model_invariants import _losses, _model, _segment
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.schema import Config
from megatron_glmv.data.types import PackedBatch
from megatron_glmv.model.packed import context_split


def permuted(batch: PackedBatch, order: list[int]) -> PackedBatch:
    """The pack with its segments in another order; the media keep theirs among themselves."""
    parts = [_segment(batch, index) for index in order]
    starts = torch.tensor([0, *(len(part.input_ids) for part in parts)]).cumsum(0)
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("input_ids", "labels", "loss_weights", "padding", "pixel_values", "grids")
    }
    return replace(
        batch,
        **joined,
        position_ids=torch.cat([part.position_ids for part in parts], dim=1),
        cu_seqlens=starts.to(torch.int32),
        visual_positions=torch.cat(
            [part.visual_positions + int(start) for part, start in zip(parts, starts[:-1], strict=True)]
        ),
    )


def _permutation(config: Config) -> tuple[float, float, float]:
    model = _model(config)
    found = []
    batch = tiny.pack(1)
    count = len(batch.cu_seqlens) - 1
    order = [2, 0, 1, *range(3, count)]
    for one in (batch, permuted(batch, order)):
        model.zero_grad(set_to_none=True)
        losses = _losses(model, one)
        (losses * one.loss_weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        found.append((losses.detach(), gradients))
    (losses, gradients), (moved, others) = found
    bounds = batch.cu_seqlens.tolist()
    back = torch.cat([losses[bounds[i] : bounds[i + 1]] for i in order])
    far = max(
        float((others[n] - g).norm() / g.norm().clamp(min=1e-12)) for n, g in gradients.items() if g.norm() > 1e-7
    )
    return float((back - moved).abs().max()), far, float((losses - moved).abs().max())


def test_samples_may_change_places_in_a_pack() -> None:
    for model in (tiny.MODEL, tiny.DENSE):
        losses, gradients, as_they_lie = run_ranks(_permutation, 1, tiny.config(model))[0]
        assert losses < 2e-5 and gradients < 1e-4
        assert as_they_lie > 0.1  # and they did change places


def _zeros(config: Config) -> tuple[float, float]:
    """A sample of nothing but token 0, the value that padding has, in a pack and alone; and what it does to others."""
    model = _model(config)
    batch = tiny.pack(0)
    start, end = batch.cu_seqlens[0].item(), batch.cu_seqlens[1].item()
    ids = batch.input_ids.clone()
    ids[start:end] = 0
    zeros = replace(batch, input_ids=ids, labels=torch.cat([ids[1:], ids[:1]]))
    with torch.no_grad():
        whole, before = _losses(model, zeros), _losses(model, replace(batch, labels=zeros.labels))
        alone = _losses(model, _segment(zeros, 0))
    return float((whole[start:end] - alone).abs().max()), float((whole[end:] - before[end:]).abs().max())


def test_token_0_is_a_token_like_any_other() -> None:
    alone, others = run_ranks(_zeros, 1, tiny.config())[0]
    assert alone < 2e-5 and others < 2e-5


def test_the_packs_of_the_layout_table_cut_media_in_the_middle_and_at_their_last_token() -> None:
    """CP 2: a visual token is the last of a chunk and the next one of the same video begins the other rank's."""
    for size in (2, 4):
        ends, across = 0, 0
        for number in range(4):
            batch = tiny.pack(number)
            lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).tolist()
            split = context_split(lengths, 0, size)
            holder = split.places // (len(split.order) // size)
            visual = set(batch.visual_positions.tolist())
            ends += sum(t + 1 < tiny.PACK and bool(holder[t] != holder[t + 1]) for t in visual)
            across += sum(t + 1 in visual and bool(holder[t] != holder[t + 1]) for t in visual)
        assert ends and across, size

"""Experts that rollouts chose, as rows of a pack's routing mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_glmv.config.schema import TextConfig
from megatron_glmv.data.packing import aligned
from megatron_glmv.data.types import PackedBatch
from megatron_glmv.model.replay import NONE, ReplayRows
from megatron_glmv.rl.batch import MiniBatch
from megatron_glmv.rl.rollout.routes_text import unpacked
from megatron_glmv.train.step import Routes


def rows_of(text: TextConfig) -> ReplayRows | None:
    """None for a model without experts."""
    moe = text.moe
    return None if moe is None else ReplayRows(text.layers - moe.first_dense, moe.topk, moe.experts)


def routes_of(batches: Sequence[MiniBatch], budget: int, rows: ReplayRows) -> Routes:
    """Has every answer routed as it was rolled out, in whichever pack it lies; padding by its scores.

    Raises ValueError where an answer has other tokens than were routed."""
    answers = {
        tuple(batch.answers[i].key for i in pack): [batch.answers[i] for i in pack]
        for batch in batches
        for pack in batch.packs
    }

    def routes(pack: PackedBatch) -> torch.Tensor:
        chosen = torch.full((budget, rows.layers, rows.topk), NONE, dtype=torch.int16)
        start = 0
        for answer in answers.get(pack.sample_ids, []):
            experts = unpacked(answer.rollout.routes, rows.layers, rows.topk)
            if len(experts) != answer.length:
                raise ValueError(f"{answer.key} has {len(experts)} routed tokens, {answer.length} were read")
            chosen[start : start + answer.length] = torch.from_numpy(experts)
            start += aligned(answer.length)
        return rows.write(chosen)

    return routes

"""Experts that a rollout chose, as text that goes with it, and as rows of a pack's routing mask.

Shapes: T tokens, P tokens of a prompt, L of an answer, N layers with experts, K experts of a token.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_glmv.config.schema import TextConfig
from megatron_glmv.data.packing import aligned
from megatron_glmv.data.types import PackedBatch
from megatron_glmv.model.replay import NONE, ReplayRows
from megatron_glmv.rl.batch import MiniBatch
from megatron_glmv.train.step import Routes

Experts = NDArray[np.int16]
BYTES = 256
"""Up to so many experts a number is a byte."""


def packed(parts: Sequence[Experts], tokens: int) -> str:
    """[.., N, K] one behind the other, the first `tokens` of them: rows that ended run on for a while."""
    if not parts:
        return ""
    whole = np.concatenate(parts)[:tokens]
    return base64.b64encode(_narrow(whole).tobytes()).decode()


def _narrow(experts: Experts) -> NDArray[np.generic]:
    """The first byte says the width."""
    wide = bool(experts.size) and int(experts.max()) >= BYTES
    body = experts.astype("<i2" if wide else np.uint8).reshape(-1)
    return np.concatenate([np.array([2 if wide else 1], np.uint8), body.view(np.uint8)])


def unpacked(text: str, layers: int, topk: int) -> Experts:
    """[T, N, K]."""
    raw = base64.b64decode(text)
    body = np.frombuffer(raw, "<i2" if raw[0] == 2 else np.uint8, offset=1)
    return body.astype(np.int16).reshape(-1, layers, topk)


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

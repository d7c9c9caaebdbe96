"""Experts that a rollout chose, as text that goes with it.

Shapes: T tokens, N layers with experts, K experts of a token.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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
    return _flat(text).reshape(-1, layers, topk)


def _flat(text: str) -> Experts:
    raw = base64.b64decode(text)
    return np.frombuffer(raw, "<i2" if raw[0] == 2 else np.uint8, offset=1).astype(np.int16)


def joined_routes(turns: Sequence[tuple[str, int, int]]) -> str:
    """Of a conversation: (experts of all tokens up to a turn's end, their number, how many of them an earlier turn
    has). A token keeps the experts of the pass in which its successor was sampled. Empty where a turn has none."""
    if not all(text for text, _, _ in turns):
        return ""
    parts = [_flat(text).reshape(tokens, -1, 1)[known:] for text, tokens, known in turns]
    return packed(parts, sum(map(len, parts)))

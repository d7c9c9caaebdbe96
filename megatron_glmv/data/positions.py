"""Three-dimensional rotary positions (M-RoPE) of a sample, as GLM-V numbers them.

Text advances time, height and width together. A picture, which is an image or one temporal patch of a video, keeps its
time fixed and counts rows and columns from there; behind it all three go on at start + max(rows, columns). Frames of a
video do not advance time by seconds: the text between them (markup and the second written out) does.

Shapes: L tokens of the sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Picture(NamedTuple):
    """Placeholders of one picture: rows x columns tokens from index `start`, row-major."""

    start: int
    rows: int
    columns: int


def mrope_positions(length: int, pictures: Iterable[Picture]) -> NDArray[np.int64]:
    """[3, L] time, height, width of each token, from 0. `pictures` in order, not overlapping.

    Raises ValueError where a picture begins before the one before it has ended, or ends behind the sample.
    """
    steps = np.ones(length, dtype=np.int64)
    inside: list[tuple[Picture, int]] = []
    end = 0
    for picture in pictures:
        tokens = picture.rows * picture.columns
        if picture.start < end or picture.start + tokens > length or tokens == 0:
            raise ValueError(f"{picture} does not fit behind token {end} in a sample of {length} tokens")
        end = picture.start + tokens
        steps[picture.start : end] = 0
        steps[end - 1] = max(picture.rows, picture.columns)
        inside.append((picture, tokens))
    # A token stands where all before it have brought the count; inside a picture nothing advances until its last token.
    first = np.concatenate([[0], np.cumsum(steps)[:-1]])
    out = np.broadcast_to(first, (3, length)).copy()
    for picture, tokens in inside:
        span = slice(picture.start, picture.start + tokens)
        cell = np.arange(tokens)
        out[1, span] += cell // picture.columns
        out[2, span] += cell % picture.columns
    return out

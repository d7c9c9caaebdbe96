"""Against worked examples of the reference implementation, and against a second formulation, token by token."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_glmv.data.positions import Picture, mrope_positions


def one_by_one(length: int, pictures: list[Picture]) -> NDArray[np.int64]:
    """The rule as it is told: walk the sample, text counts up, a picture is numbered by its rows and columns."""
    out, current, at = [], 0, 0
    by_start = {picture.start: picture for picture in pictures}
    while at < length:
        if at in by_start:
            _, rows, columns = by_start[at]
            out += [(current, current + r, current + c) for r in range(rows) for c in range(columns)]
            at, current = at + rows * columns, current + max(rows, columns)
        else:
            out.append((current, current, current))
            at, current = at + 1, current + 1
    return np.array(out, dtype=np.int64).T


def test_an_image_of_two_by_three_tokens() -> None:
    assert mrope_positions(12, [Picture(3, 2, 3)]).tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8],
    ]


def test_a_video_of_two_temporal_patches() -> None:
    assert mrope_positions(18, [Picture(3, 2, 2), Picture(10, 2, 2)]).tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 5, 6, 7, 8, 8, 8, 8, 10, 11, 12, 13],
        [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 8, 9, 9, 10, 11, 12, 13],
        [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 9, 8, 9, 10, 11, 12, 13],
    ]


def test_text_alone_counts_up() -> None:
    assert (mrope_positions(5, []) == np.arange(5)).all()
    assert mrope_positions(0, []).shape == (3, 0)


def test_both_formulations_agree_on_random_samples() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        pictures, at = [], int(random.integers(0, 4))
        for _ in range(random.integers(0, 5)):
            rows, columns = (int(x) for x in random.integers(1, 7, 2))
            pictures.append(Picture(at, rows, columns))
            at += rows * columns + int(random.integers(0, 5))
        length = at + int(random.integers(0, 6))
        assert (mrope_positions(length, pictures) == one_by_one(length, pictures)).all(), (length, pictures)


@pytest.mark.parametrize("pictures", [[Picture(3, 2, 2), Picture(6, 1, 1)], [Picture(8, 2, 2)], [Picture(0, 0, 3)]])
def test_pictures_that_overlap_overhang_or_are_empty_are_refused(pictures: list[Picture]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        mrope_positions(10, pictures)

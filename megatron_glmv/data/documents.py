"""Documents with images that no pack holds: as several samples, cut between their media.

Only messages of the role `document` are split: a page goes on where it was cut, an answer without its
question does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_glmv.data.lengths import Layouts


@dataclass(frozen=True)
class Part:
    """`length` tokens of a sample of the data set, from `start`."""

    sample: int
    start: int
    length: int
    patches: int
    pictures: int
    """Images and temporal patches."""


def split(layouts: Layouts, samples: Iterable[int], budget: int) -> list[Part]:
    """Parts of those of `samples` that are documents and whose media all fit; the others are passed over."""
    found: list[Part] = []
    for i in samples:
        if layouts.dataset.conversation(i)["messages"][0]["role"] != "document":
            continue
        whole = layouts(i)
        for start, length in whole.parts(budget):
            piece = whole.part(start, length)
            found.append(Part(i, start, length, piece.patches, sum(p.grid.t for p in piece.plans)))
    return found

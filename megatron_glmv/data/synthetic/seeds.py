"""One random stream per (seed, split, family, index): any sample can be made alone, and no two splits share a
stream."""

from __future__ import annotations

from zlib import crc32

import numpy as np

TRAIN, VAL, EVAL = "train", "val", "eval"
SPLITS = (TRAIN, VAL, EVAL)


def stream_key(seed: int, split: str, family: str, index: int) -> tuple[int, int, int, int]:
    """What a stream is seeded with. Different arguments give different keys (families differ in their CRC-32).

    Raises ValueError on an unknown split or a negative number.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    return seed, SPLITS.index(split), crc32(family.encode()), index


def stream(seed: int, split: str, family: str, index: int) -> np.random.Generator:
    """The generator that draws sample `index` of a family; independent of every other one (numpy's SeedSequence)."""
    return np.random.default_rng(np.random.SeedSequence(stream_key(seed, split, family, index)))

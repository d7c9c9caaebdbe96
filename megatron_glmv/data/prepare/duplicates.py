"""Step 7, over the whole corpus: near-duplicates, of which the largest stays.

In the caption domains a sample is its pictures: the same pictures with other words are a duplicate. Elsewhere the
learned text must be the same too. Samples without media are duplicates when their learned texts are the same words.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.prepare import hashing, near
from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.step import verdict
from megatron_glmv.data.types import VIDEO, Json

VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """What is compared of one sample."""

    key: str
    weight: tuple[int, int]
    """Pixels and bytes of its media: the larger one is kept."""
    kind: tuple[str, ...]
    """Only samples of one kind are compared: number of hashes of each medium, and the text where it must agree."""
    hashes: bytes

    @property
    def order(self) -> tuple[int, int, str]:
        return -self.weight[0], -self.weight[1], self.key


class Duplicates:
    name = "duplicates"

    def skipped(self, options: Options) -> str:
        return "" if options.duplicates.enabled else "duplicates.enabled is false"

    def identity(self, options: Options) -> Json:
        return {"version": VERSION, "options": vars(options.duplicates), "captions": options.captions}

    def gather(self, lines: Mapping[str, Json], options: Options) -> Candidate:
        return candidate(lines["inspect"], options)

    def lines(self, corpus: Sequence[Candidate], options: Options) -> Iterator[Json]:
        """A line for each sample of the corpus, in order."""
        gone = duplicates(corpus, options)
        for sample in corpus:
            key = sample.key
            yield verdict(key, "near_duplicate", f"of {gone[key]}") if key in gone else verdict(key, "")


def candidate(facts: Json, options: Options) -> Candidate:
    media = facts["media"]
    hashes = [bytes.fromhex(medium["hash"]) for medium in media]
    kind = tuple(str(len(found) // hashing.BYTES) for found in hashes)
    if not media or facts["domain"] not in options.captions:
        kind = (*kind, str(facts["text"]))
    pixels = sum(m["width"] * m["height"] * (m["frames"] if m["kind"] == VIDEO else 1) for m in media)
    return Candidate(str(facts["key"]), (pixels, sum(m["bytes"] for m in media)), kind, b"".join(hashes))


def duplicates(corpus: Sequence[Candidate], options: Options) -> dict[str, str]:
    """Key of each sample that goes -> key of the one that stays for it. The order of `corpus` does not matter.

    Raises DataError when two samples have one key.
    """
    (key, times), *_ = Counter(sample.key for sample in corpus).most_common(1) or [("", 0)]
    if times > 1:
        raise DataError("the corpus", f"key {key!r} appears in {times} shards; keys name samples in all files")
    kinds: defaultdict[tuple[str, ...], list[Candidate]] = defaultdict(list)
    for sample in corpus:
        kinds[sample.kind].append(sample)
    gone: dict[str, str] = {}
    for kind, samples in kinds.items():
        if len(samples) == 1:
            continue
        samples.sort(key=lambda sample: sample.order)
        if not samples[0].hashes:
            gone |= {sample.key: samples[0].key for sample in samples[1:]}
            continue
        rows = np.frombuffer(b"".join(sample.hashes for sample in samples), np.uint8).reshape(len(samples), -1)
        lengths = [int(part) for part in kind if part.isdecimal() and len(part) < 32]
        found = near.without_near(
            rows,
            _near(rows, lengths, options.duplicates.distance),
            options.duplicates.distance / 256,
            options.duplicates.recall,
        )
        gone |= {samples[b].key: samples[a].key for b, a in found.items()}
    return gone


def _near(rows: NDArray[np.uint8], lengths: Sequence[int], distance: int) -> near.Near:
    """Every medium on its own lies within the distance, as the mean over its hashes."""
    ends = np.cumsum([0, *lengths]) * hashing.BYTES

    def judge(a: near.Indices, b: near.Indices) -> NDArray[np.bool_]:
        close = np.ones(len(a), np.bool_)
        for start, end in pairwise(ends):
            frames = (end - start) // hashing.BYTES
            close &= hashing.bits_between(rows[a, start:end], rows[b, start:end]) <= distance * frames
        return close

    return judge

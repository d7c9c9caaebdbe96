"""From sample numbers to a PackedBatch: read, lay out, decode, collate. The same in a rank and in its workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_glmv.data.collate import Sample, collate, hole
from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.lengths import Layouts
from megatron_glmv.data.media import Item, MediaDecoder
from megatron_glmv.data.types import PackedBatch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Failure:
    """A sample that left a hole, as the ledger wants it."""

    key: str
    shard: str
    reason: str


@dataclass(frozen=True)
class Pack:
    """What to make: dataset indices of the samples and the tokens each takes, known beforehand."""

    samples: tuple[int, ...]
    lengths: tuple[int, ...]
    starts: tuple[int, ...] = ()
    """First token of each that is taken; empty: all from 0. Above 0 in later parts of a document."""

    def items(self) -> list[tuple[int, int, int]]:
        """(sample, start, length) of each."""
        return list(zip(self.samples, self.starts or (0,) * len(self.samples), self.lengths, strict=True))


class BatchMaker:
    """Makes packs of `data.pack_tokens` tokens, decoded on `device`. DALI starts at the first pack with media."""

    def __init__(self, layouts: Layouts, device: torch.device = CPU) -> None:
        self.layouts = layouts
        self.budget = layouts.data.pack_tokens
        self.patch_values = layouts.vision.patch_values
        self._decoder = MediaDecoder(layouts.data, layouts.vision, device)

    def make(self, pack: Pack) -> tuple[PackedBatch, list[Failure]]:
        """A sample that cannot be read or decoded is a hole of its known length, and a Failure."""
        prepared = [self._prepare(*item) for item in pack.items()]
        return self._finish(pack, self._decode(prepared))

    def make_one_by_one(
        self, pack: Pack, condemned: Mapping[int, str], announce: Callable[[int], None]
    ) -> tuple[PackedBatch, list[Failure]]:
        """The same batch, each sample by itself and named before it is touched, so that one that kills or hangs the
        process is known. `condemned` maps places in the pack to reasons: those become holes untouched."""
        done: list[Sample] = []
        for place, item in enumerate(pack.items()):
            if place in condemned:
                done.append(self._without_pixels(*item).failed(condemned[place], self.patch_values))
                continue
            announce(place)
            done += self._decode([self._prepare(*item)])
        return self._finish(pack, done)

    def _finish(self, pack: Pack, samples: Sequence[Sample]) -> tuple[PackedBatch, list[Failure]]:
        failures = [
            Failure(sample.key, self.layouts.dataset.entry(i).shard, sample.failure)
            for i, sample in zip(pack.samples, samples, strict=True)
            if sample.failure
        ]
        return collate(samples, self.budget, self.layouts.tokenizer.pad, self.patch_values), failures

    def _without_pixels(self, i: int, start: int, length: int) -> Sample:
        """The sample before its media are read, or the part of it that is taken."""
        try:
            layout = self.layouts(i).part(start, length)
        except SampleError as error:
            return hole(error.key, length, self.layouts.tokenizer.pad, error.reason)
        return Sample(self.layouts.dataset.entry(i).key, layout)

    def _prepare(self, i: int, start: int, length: int) -> tuple[Sample, list[Item]]:
        sample = self._without_pixels(i, start, length)
        if sample.failure:
            return sample, []
        entry, first = self.layouts.dataset.entry(i), sample.layout.first_medium
        here = entry.media[first : first + len(sample.layout.plans)]
        try:
            media = [
                (plan, facts, self.layouts.dataset.member(i, facts.member))
                for plan, facts in zip(sample.layout.plans, here, strict=True)
            ]
        except SampleError as error:
            return sample.failed(error.reason, self.patch_values), []
        return sample, media

    def _decode(self, prepared: Sequence[tuple[Sample, list[Item]]]) -> list[Sample]:
        """Decode the media of several samples in one call."""
        items = [item for _, media in prepared for item in media]
        decoded = iter(self._decoder.decode(items) if items else ())
        out: list[Sample] = []
        for sample, media in prepared:
            results = [(facts.member, next(decoded)) for _, facts, _ in media]
            errors = [f"{member}: {result.error}" for member, result in results if result.patches is None]
            if errors:
                out.append(sample.failed("; ".join(errors), self.patch_values))
            elif results:
                patches = tuple(r.patches.cpu() for _, r in results if r.patches is not None)
                out.append(Sample(sample.key, sample.layout, patches, tuple(r.decoder for _, r in results)))
            else:
                out.append(sample)
        return out

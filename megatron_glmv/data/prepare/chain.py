"""The steps in their order, and what becomes of one shard in them: run where a result is missing, read where it is not.

Every function here is run by any process on any machine that sees the folders; none depends on who ran the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.prepare import write
from megatron_glmv.data.prepare.balance import Balance
from megatron_glmv.data.prepare.clip import Clip
from megatron_glmv.data.prepare.concepts import Concepts
from megatron_glmv.data.prepare.contamination import Contamination
from megatron_glmv.data.prepare.duplicates import Duplicates
from megatron_glmv.data.prepare.heuristics import Heuristics
from megatron_glmv.data.prepare.inspect import Inspect
from megatron_glmv.data.prepare.language import Language
from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.recaption import CACHE, Recaption
from megatron_glmv.data.prepare.source import Shard
from megatron_glmv.data.prepare.step import REMOVED, Entrant, Step
from megatron_glmv.data.prepare.work import Result, Work, fingerprint
from megatron_glmv.data.types import Json


class WholeStep(Protocol):
    """A step that sees the whole corpus: `gather` what it needs of each sample, then a line for each."""

    @property
    def name(self) -> str: ...

    def skipped(self, options: Options) -> str: ...

    def identity(self, options: Options) -> Json: ...

    def gather(self, lines: Mapping[str, Json], options: Options) -> Any:
        """From the lines of the steps before, by step."""

    def lines(self, corpus: Sequence[Any], options: Options) -> Iterator[Json]: ...


SCAN: tuple[Step, ...] = (Inspect(), Heuristics(), Language(), Contamination(), Clip(), Concepts())
WHOLE: tuple[WholeStep, ...] = (Duplicates(), Balance())


def judges() -> list[Step | WholeStep]:
    """All steps that may remove something, in order."""
    return [*SCAN, *WHOLE]


@dataclass(frozen=True)
class Part:
    """One shard of a corpus, and where its results go."""

    shard: Path
    work: Work
    options: Options

    def result(self, step: str) -> Result:
        return self.work.result(step, self.shard.name)

    def made_from(self, step: str, identity: Json, before: Sequence[str]) -> str:
        size = self.shard.stat().st_size
        return fingerprint({"step": step, "identity": identity, "shard": [self.shard.name, size], "before": before})

    def lines(self, step: Step | WholeStep) -> list[Json]:
        """Of a step that was done. Raises DataError when it was not, or with other options."""
        return self.result(step.name).lines(step.identity(self.options))

    def before(self, step: str) -> list[Step | WholeStep]:
        """Steps ahead of `step` that are not skipped."""
        found: list[Step | WholeStep] = []
        for other in judges():
            if other.name == step:
                break
            if not other.skipped(self.options):
                found.append(other)
        return found

    def digests(self, step: str) -> list[str]:
        """sha256 of the results that `step` builds on. Raises DataError when one is not there."""
        return [self.result(other.name).sha256(other.identity(self.options)) for other in self.before(step)]

    def kept(self, step: str) -> dict[str, dict[str, Json]]:
        """Samples that reach `step`, in order: key -> its line of each step before. Raises DataError as above."""
        lines: dict[str, dict[str, Json]] = {}
        for n, other in enumerate(self.before(step)):
            found = {str(line["key"]): line for line in self.lines(other)}
            if n and found.keys() != lines.keys():
                raise DataError(self.result(other.name).path, "does not fit the results before it; run its phase again")
            lines = {key: lines.get(key, {}) | {other.name: line} for key, line in found.items() if REMOVED not in line}
        return lines


def scan(part: Part) -> int:
    """All steps that need nothing but the shard; returns how many of them had to run."""
    ran = 0
    before: list[str] = []
    missing: list[Step] = []
    for step in SCAN:
        if step.skipped(part.options):
            continue
        result, identity = part.result(step.name), step.identity(part.options)
        if missing or not result.done(part.made_from(step.name, identity, before)):
            missing.append(step)
        else:
            before.append(result.sha256(identity))
    if not missing:
        return 0
    with Shard(part.shard) as shard:
        samples = {sample.key: sample for sample in shard.samples()}
        for step in missing:
            if step.name == "inspect":
                entrants = [Entrant(sample, {}) for sample in samples.values()]
            else:
                entrants = [Entrant(samples[key], lines["inspect"]) for key, lines in part.kept(step.name).items()]
            result, identity = part.result(step.name), step.identity(part.options)
            made_from = part.made_from(step.name, identity, before)
            if not result.done(made_from):  # a step before it may have come out as it was
                result.commit(step.lines(shard, entrants, part.options), made_from, identity)
                ran += 1
            before.append(result.sha256(identity))
    return ran


def gather(part: Part, name: str) -> list[Any]:
    """What a step over the whole corpus needs of one shard."""
    (step,) = (step for step in WHOLE if step.name == name)
    return [step.gather(lines, part.options) for lines in part.kept(name).values()]


def output(part: Part, out: Path) -> bool:
    """Recaption and write one shard to the folder `out`; False where that was done before."""
    recaption = Recaption(part.work.directory / CACHE)
    before = part.digests(write.NAME)
    kept = part.kept(write.NAME)
    written = part.result(write.NAME)
    steps = [] if recaption.skipped(part.options) else [recaption]
    ran = False
    with Shard(part.shard) as shard:
        samples = {sample.key: sample for sample in shard.samples()} if kept else {}
        entrants = [Entrant(samples[key], lines["inspect"]) for key, lines in kept.items()]
        captions: dict[str, str] = {}
        for step in steps:
            result, identity = part.result(step.name), step.identity(part.options)
            made_from = part.made_from(step.name, identity, before)
            if not result.done(made_from):
                result.commit(step.lines(shard, entrants, part.options), made_from, identity)
                ran = True
            captions = {line["key"]: line["caption"] for line in result.lines(identity) if "caption" in line}
            before = [*before, result.sha256(identity)]
        made_from = part.made_from(write.NAME, write.IDENTITY, before)
        target = out / part.shard.name
        if not written.done(made_from) or target.exists() != bool(kept):
            scratch = part.work.directory / "unfinished"
            lines = write.write_shard(shard, [e.sample for e in entrants], captions, target, scratch)
            place = Path("..", "..", target.name)  # from OUT/prepare/write
            files = {str(place): target.stat().st_size} if kept else {}
            written.commit(lines, made_from, write.IDENTITY, files)
            ran = True
    return ran

"""The phases of a preparation, each of which may be spread over processes and over the tasks of an array.

`scan` looks at shards one by one, `whole` compares them with each other, `write` makes the output shards one by one,
`finish` makes index, ledger and report. Shards are shared out by number; a phase does only what is missing, so that any
task may be started again at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import write_index
from megatron_glmv.data.prepare import chain, language, report, write
from megatron_glmv.data.prepare.chain import Part
from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.recaption import CACHE, Recaption
from megatron_glmv.data.prepare.work import Work, fingerprint
from megatron_glmv.data.processes import process_pool
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import shard_paths

WORK = "prepare"
"""Folder of the intermediate results, inside the output's."""
PHASES = ("scan", "whole", "write", "finish")
T = TypeVar("T")


@dataclass(frozen=True)
class Preparation:
    """One corpus on its way from `source` to `out`.

    `share` is (i, n): this process is task i of n, and does every n-th shard of the phases that go by shards.
    """

    source: Path
    out: Path
    options: Options
    workers: int = 1
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        """Raises ConfigError for folders or a share that cannot be."""
        index, count = self.share
        if not 0 <= index < count:
            raise ConfigError("--shard", f"{index}/{count}", "is not i/N with 0 <= i < N")
        if self.source.resolve() == self.out.resolve():
            raise ConfigError("OUT", str(self.out), "is the source; shards would be written over")
        if self.workers < 1:
            raise ConfigError("--workers", self.workers, "is under 1")

    @property
    def work(self) -> Work:
        return Work(self.out / WORK)

    def parts(self) -> list[Part]:
        """Raises DataError where the source has no shards or two whose names differ in the suffix alone."""
        return [Part(path, self.work, self.options) for path in shard_paths(self.source)]

    def mine(self) -> list[Part]:
        index, count = self.share
        return self.parts()[index::count]

    def skipped(self) -> Iterator[str]:
        """A line for each step that has nothing to do."""
        for step in (*chain.judges(), Recaption(self.work.directory / CACHE)):
            if reason := step.skipped(self.options):
                yield f"{step.name}: skipped, {reason}"
        if self.options.language.allowed and language.classifier() is None:
            yield "language: by script alone, py3langid is not installed; pip install '.[prepare]'"

    def run(self, phase: str) -> None:
        """One phase, or `all`. Raises DataError and ConfigError."""
        if phase == "all":
            if self.share != (0, 1):
                raise ConfigError("--phase", phase, "cannot be shared out", f"name one of {', '.join(PHASES)}")
            for each in PHASES:
                self.run(each)
            return
        if phase not in PHASES:
            raise ConfigError("--phase", phase, "is no phase", f"there are: all, {', '.join(PHASES)}")
        self.out.mkdir(parents=True, exist_ok=True)
        getattr(self, phase)()

    def scan(self) -> None:
        self._each(chain.scan, self.mine(), "scan")

    def whole(self) -> None:
        """Every step over the whole corpus; its result is a pure function of the samples, not of their shards."""
        parts = self.parts()
        for step in chain.WHOLE:
            if step.skipped(self.options):
                continue
            before = [part.digests(step.name) for part in parts]
            identity = step.identity(self.options)
            made_from = fingerprint({"step": step.name, "identity": identity, "before": before})
            results = [part.result(step.name) for part in parts]
            if all(result.done(made_from) for result in results):
                continue
            gathered = self._each(partial(chain.gather, name=step.name), parts, step.name)
            lines = step.lines([sample for samples in gathered for sample in samples], self.options)
            for result, samples in zip(results, gathered, strict=True):
                result.commit(islice(lines, len(samples)), made_from, identity)

    def write(self) -> None:
        self._each(partial(chain.output, out=self.out), self.mine(), "write")

    def finish(self) -> None:
        """Index, `removed.jsonl` and `report.json`. Raises DataError while a shard is missing."""
        parts = self.parts()
        lines = {part.shard.name: part.result(write.NAME).lines(write.IDENTITY) for part in parts}
        for part in parts:
            if [line["key"] for line in lines[part.shard.name]] != list(part.kept(write.NAME)):
                raise DataError(part.shard, "was written from other results than there are now; run phase write again")
        expected = {name for name, samples in lines.items() if samples}
        here = {path.name for path in self.out.glob("*.tar")}
        if strange := sorted(here ^ expected):
            raise DataError(self.out, f"{', '.join(strange[:4])}: not as phase write left it; run it again")
        for left in self.out.rglob("*.partial-*"):  # of processes that were killed, the state's in OUT/prepare too
            left.unlink(missing_ok=True)
        made = report.collect(parts)
        report.save(made, self.out)
        if not expected:
            raise DataError(self.out, "no sample is left; report.json says which step removed them")
        paths = [self.out / name for name in sorted(expected)]
        write_index(self.out, paths, (_index_lines(lines[path.name]) for path in paths))

    def _each(self, do: Callable[[Part], T], parts: Sequence[Part], label: str) -> list[T]:
        """`do` of each part, in order, on `workers` processes; what was done before an error stays done."""
        if self.workers == 1 or len(parts) < 2:
            return list(track(map(do, parts), label, len(parts)))
        pool = process_pool(min(self.workers, len(parts)))
        try:
            return list(track(pool.map(do, parts), label, len(parts)))
        except BrokenProcessPool as e:
            raise DataError(
                self.source, "a worker was killed (memory?); run again, with fewer --workers: finished shards stay"
            ) from e
        finally:
            pool.shutdown(cancel_futures=True)


def _index_lines(samples: Sequence[Any]) -> list[tuple[str, bytes]]:
    """As `index_shard` writes them."""
    return [(s["key"], json.dumps(s, separators=(",", ":")).encode() + b"\n") for s in samples]

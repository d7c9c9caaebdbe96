"""Step 4: samples that share a sequence of words or a picture with an evaluation file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from megatron_glmv.data.prepare import evaluation_set, hashing, text
from megatron_glmv.data.prepare.options import ContaminationOptions, Options
from megatron_glmv.data.prepare.source import Shard
from megatron_glmv.data.prepare.step import Entrant, verdict
from megatron_glmv.data.types import Json

VERSION = 1


class Contamination:
    name = "contamination"

    def skipped(self, options: Options) -> str:
        return "" if options.contamination.files else "no evaluation file; name them in contamination.files"

    def identity(self, options: Options) -> Json:
        files = _identity(options.contamination.files)
        rules = {name: value for name, value in vars(options.contamination).items() if name != "files"}
        return {"version": [VERSION, evaluation_set.VERSION], "options": rules, "files": files}

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]:
        known = _read(options.contamination)
        return [judge(entrant, known, options.contamination) for entrant in entrants]


def judge(entrant: Entrant, known: evaluation_set.EvaluationSet, options: ContaminationOptions) -> Json:
    key = entrant.sample.key
    for found in text.pieces(entrant.sample.conversation):
        if match := known.text_match(text.words(found)):
            return verdict(key, "text", match)
    for medium in entrant.facts["media"]:
        if match := known.picture_match(hashing.from_text(medium["hash"]), options.distance):
            return verdict(key, "picture", f"{medium['member']}: {match}")
    return verdict(key, "")


@lru_cache(1)
def _read(options: ContaminationOptions) -> evaluation_set.EvaluationSet:
    return evaluation_set.read(options)


@lru_cache(1)
def _identity(files: tuple[str, ...]) -> list[list[object]]:
    return evaluation_set.identity(files)

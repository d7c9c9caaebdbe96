"""Step 5: pictures and captions that a CLIP-like model finds to agree; the paper keeps CLIP-Score > 0.3."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import Image

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.prepare import clip_model, text
from megatron_glmv.data.prepare.inspect import open_picture
from megatron_glmv.data.prepare.options import ClipOptions, Options
from megatron_glmv.data.prepare.source import Shard
from megatron_glmv.data.prepare.step import Entrant, verdict
from megatron_glmv.data.types import IMAGE, Json

VERSION = 1


class Clip:
    name = "clip"

    def skipped(self, options: Options) -> str:
        return "" if options.clip.model else "no model; name a local CLIP or SigLIP directory in clip.model"

    def identity(self, options: Options) -> Json:
        rules = {"min_score": options.clip.min_score, "batch": options.clip.batch, "captions": options.captions}
        return {"version": VERSION, "options": rules, "model": clip_model.identity(Path(options.clip.model))}

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]:
        pairs = [entrant for entrant in entrants if is_pair(entrant, options)]
        scores: dict[str, float] = {}
        for start in range(0, len(pairs), options.clip.batch):
            part = pairs[start : start + options.clip.batch]
            try:
                pictures = [_picture(shard, entrant) for entrant in part]
            except SampleError as e:  # `inspect` decoded it: the shard is another one now
                raise RuntimeError(f"{shard.path}: changed while it was prepared: {e}") from e
            found = _scorer(options.clip).scores(pictures, [text.learned(e.sample.conversation) for e in part])
            scores |= {e.sample.key: round(score, 4) for e, score in zip(part, found, strict=True)}
        return [judge(e.sample.key, scores.get(e.sample.key), options.clip.min_score) for e in entrants]


def _picture(shard: Shard, entrant: Entrant) -> Image.Image:
    ((_, name),) = entrant.sample.media()
    return open_picture(name, shard.read(entrant.sample, name))


def is_pair(entrant: Entrant, options: Options) -> bool:
    """One picture and its caption."""
    return entrant.sample.domain in options.captions and [m["kind"] for m in entrant.facts["media"]] == [IMAGE]


def judge(key: str, score: float | None, least: float) -> Json:
    if score is None:
        return verdict(key, "")
    line = verdict(key, "" if score > least else "clip_score", f"{score:.4f}, min_score {least:g}")
    return line | {"score": score}


@lru_cache(1)
def _scorer(options: ClipOptions) -> clip_model.Scorer:
    return clip_model.LocalModel(Path(options.model), options.device)

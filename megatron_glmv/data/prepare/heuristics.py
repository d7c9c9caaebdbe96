"""Step 2: size, aspect ratio, contrast, duration, length and repetition, by the rules of the sample's domain."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_glmv.data.prepare import text
from megatron_glmv.data.prepare.options import Options, Rules
from megatron_glmv.data.prepare.source import Shard
from megatron_glmv.data.prepare.step import Entrant, verdict
from megatron_glmv.data.types import Json

VERSION = 1
REPETITION_WORDS = 20
"""Shorter texts repeat themselves by chance."""
WINDOW = 5
"""Words of a sequence that counts as repeated."""


class Heuristics:
    name = "heuristics"

    def skipped(self, options: Options) -> str:
        return ""

    def identity(self, options: Options) -> Json:
        return {"version": VERSION, "rules": {name: vars(rules) for name, rules in options.rules.items()}}

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]:
        return [judge(entrant, options.rules_of(entrant.sample.domain)) for entrant in entrants]


def judge(entrant: Entrant, rules: Rules) -> Json:
    """The first rule that the sample breaks: media in order, then its text."""
    key = entrant.sample.key
    for medium in entrant.facts["media"]:
        if broken := medium_breaks(medium, rules):
            return verdict(key, broken[0], f"{medium['member']}: {broken[1]}")
    return verdict(key, *text_breaks(text.learned(entrant.sample.conversation), rules))


def medium_breaks(medium: Json, rules: Rules) -> tuple[str, str] | None:
    """(reason, figure)."""
    short, long = sorted((int(medium["width"]), int(medium["height"])))
    size = f"{medium['width']} x {medium['height']}"
    if short < rules.min_side:
        return "small", f"{size}, min_side {rules.min_side}"
    if short * long > rules.max_pixels:
        return "large", f"{size}, max_pixels {rules.max_pixels}"
    if long > rules.max_aspect * short:
        return "aspect", f"{size}, max_aspect {rules.max_aspect:g}"
    if medium["contrast"] < rules.min_contrast:
        return "blank", f"contrast {medium['contrast']}, min_contrast {rules.min_contrast:g}"
    if medium.get("seconds", 0) > rules.max_seconds:
        return "long_video", f"{medium['seconds']} s, max_seconds {rules.max_seconds:g}"
    return None


def text_breaks(found: str, rules: Rules) -> tuple[str, str]:
    """(reason, figure), both empty where it keeps the rules."""
    words = text.words(found)
    length = len(found.strip())
    if length < rules.min_chars or len(words) < rules.min_words:
        return "short_text", f"{len(words)} words, {length} characters"
    if length > rules.max_chars:
        return "long_text", f"{length} characters, max_chars {rules.max_chars}"
    if run := re.search(rf"([^\W_])\1{{{rules.max_run},}}", found):
        return "repetition", f"{run.group(1)!r} over {rules.max_run} times in a row"
    if len(words) >= REPETITION_WORDS and (share := repetition(words)) > rules.max_repetition:
        return "repetition", f"{share:.2f} of the words in sequences seen before"
    return "", ""


def repetition(words: Sequence[str], window: int = WINDOW) -> float:
    """Share of `words` that lie in a sequence of `window` words which began earlier in the text too."""
    seen: set[tuple[str, ...]] = set()
    again = 0
    covered = 0
    for start in range(len(words) - window + 1):
        sequence = tuple(words[start : start + window])
        if sequence in seen:
            again += start + window - max(covered, start)
            covered = start + window
        seen.add(sequence)
    return again / max(len(words), 1)

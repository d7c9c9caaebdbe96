"""Step 3: the languages that stay, by script and, in Latin script, by words.

Script is exact; words go through py3langid (naive Bayes over byte sequences, 139 languages, its model in the package)
where it is installed, and only for texts long enough to be judged. A tie goes to the sample.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from megatron_glmv.data.prepare import text
from megatron_glmv.data.prepare.options import LanguageOptions, Options
from megatron_glmv.data.prepare.source import Shard
from megatron_glmv.data.prepare.step import Entrant, verdict
from megatron_glmv.data.types import Json

VERSION = 1
SCRIPTS = {
    "zh": {"CJK"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA"},
    "ko": {"HANGUL", "CJK"},
    "ru": {"CYRILLIC"},
    "uk": {"CYRILLIC"},
    "bg": {"CYRILLIC"},
    "ar": {"ARABIC"},
    "fa": {"ARABIC"},
    "el": {"GREEK"},
    "he": {"HEBREW"},
    "hi": {"DEVANAGARI"},
    "th": {"THAI"},
}
"""First word of the Unicode names of a language's letters; all others: LATIN."""
ALWAYS = {"GREEK", "MATHEMATICAL", "FULLWIDTH", "MODIFIER", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "MICRO"}
"""Letters of formulas, in any language."""
CLOSE = {"en": {"pcm", "sco"}, "zh": {"wuu", "yue", "lzh"}, "pt": {"gl"}, "ms": {"id"}, "id": {"ms"}}
"""What the classifier takes short texts of a language for."""
MAX_CHARS = 4000
"""Of a text, its beginning is judged."""
Classifier = Callable[[str], tuple[str, float]]


class Language:
    name = "language"

    def skipped(self, options: Options) -> str:
        return "" if options.language.allowed else "language.allowed is empty: every language stays"

    def identity(self, options: Options) -> Json:
        return {"version": VERSION, "options": vars(options.language), "classifier": classifier_name()}

    def lines(self, shard: Shard, entrants: Sequence[Entrant], options: Options) -> list[Json]:
        classify = classifier()
        return [
            verdict(e.sample.key, *foreign(text.learned(e.sample.conversation), options.language, classify))
            for e in entrants
        ]


def classifier_name() -> str:
    try:
        return f"py3langid {version('py3langid')}"
    except PackageNotFoundError:
        return "scripts only"


@cache
def classifier() -> Classifier | None:
    """Text -> its language and the probability of that; None without py3langid."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def classify(found: str) -> tuple[str, float]:
        language, probability = identifier.classify(found)
        return str(language), float(probability)

    return classify


def foreign(found: str, options: LanguageOptions, classify: Classifier | None) -> tuple[str, str]:
    """(reason, detail), both empty where the language may stay."""
    found = found[:MAX_CHARS]
    letters = scripts(found)
    wanted = set().union(ALWAYS, *(SCRIPTS.get(language, {"LATIN"}) for language in options.allowed))
    outside = Counter({script: count for script, count in letters.items() if script not in wanted})
    total = letters.total()
    if total and outside.total() > options.max_foreign * total:
        worst, _ = min(outside.items(), key=lambda item: (-item[1], item[0]))
        return "script", f"{outside.total()} of {total} letters, {worst.lower()} above all"
    latin = letters["LATIN"] > total / 2
    if classify is None or not latin or len(text.words(found)) < options.min_words:
        return "", ""
    language, probability = classify(found)
    stays = set(options.allowed).union(*(CLOSE.get(name, ()) for name in options.allowed))
    if language not in stays and probability >= options.confidence:
        return "language", f"{language} with probability {probability:.2f}"
    return "", ""


def scripts(found: str) -> Counter[str]:
    """Letters by script, the first word of a character's Unicode name."""
    count: Counter[str] = Counter()
    for letter, times in Counter(found).items():
        if letter.isalpha():
            count[unicodedata.name(letter, "UNKNOWN").partition(" ")[0]] += times
    return count

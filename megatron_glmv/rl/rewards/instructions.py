"""Following instructions that can be checked: the ones of IFEval (arXiv 2311.07911), by their names there.

`extra` instructions: a list of {"id": "keywords:existence", "keywords": [..]}; or as the data set has them,
instruction_id_list beside kwargs. All have to be followed; with `extra` partial the share counts. A box is optional:
its markers are taken off and all of the answer is looked at.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from megatron_glmv.rl.rewards.types import OPTIONAL, Verdict, Verifier
from megatron_glmv.rl.rewards.values import read_json

Rule = Callable[[str, Mapping[str, Any]], bool]
MAX_CHARS = 50_000
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?。！？]+(?:[\"')\]]*)(?=\s|\Z)")
_SCRIPTS = {
    "zh": "CJK",
    "ja": "HIRAGANA",
    "ko": "HANGUL",
    "ru": "CYRILLIC",
    "uk": "CYRILLIC",
    "bg": "CYRILLIC",
    "ar": "ARABIC",
    "fa": "ARABIC",
    "ur": "ARABIC",
    "hi": "DEVANAGARI",
    "mr": "DEVANAGARI",
    "ne": "DEVANAGARI",
    "th": "THAI",
    "he": "HEBREW",
    "el": "GREEK",
    "bn": "BENGALI",
    "ta": "TAMIL",
    "te": "TELUGU",
    "en": "LATIN",
}
"""Languages that their script tells; others would need a model and are refused."""


def _compare(count: int, relation: Any, bound: Any) -> bool:
    """IFEval's two relations; without one, exactly."""
    relation = str(relation or "")
    if relation == "less than":
        return count < int(bound)
    return count >= int(bound) if relation == "at least" else count == int(bound)


def _times(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word.casefold())}(?!\w)", text.casefold()))


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n[ \t]*\n|\n?\*\*\*\n?", text) if part.strip()]


def _first_word(text: str, rule: Mapping[str, Any]) -> bool:
    parts = _paragraphs(text)
    nth = int(rule["nth_paragraph"])
    if len(parts) != int(rule["num_paragraphs"]) or not 1 <= nth <= len(parts):
        return False
    found = _WORD.search(parts[nth - 1])
    return found is not None and found[0].casefold() == str(rule["first_word"]).casefold()


def _is_json(text: str) -> bool:
    try:
        return isinstance(read_json(text), (dict, list))
    except ValueError:
        return False


def _language(text: str, rule: Mapping[str, Any]) -> bool:
    script = _SCRIPTS.get(str(rule["language"]))
    if script is None:
        raise ValueError(f"language {rule['language']!r} is not told by its script")
    letters = [unicodedata.name(sign, "") for sign in text if sign.isalpha()]
    own = sum(name.startswith(script) for name in letters)
    if script == "HIRAGANA":  # Japanese mixes three scripts; kana is what Chinese has not
        own = len(letters) if own > 0.1 * len(letters) else 0
    return bool(letters) and own > 0.5 * len(letters)


def _capitals(text: str, rule: Mapping[str, Any]) -> bool:
    words = [word for word in _WORD.findall(text) if word.isupper()]
    return _compare(len(words), rule.get("capital_relation"), rule["capital_frequency"])


def _sections(text: str, rule: Mapping[str, Any]) -> bool:
    mark = re.escape(str(rule.get("section_spliter", "Section")))
    return len(re.findall(rf"^[ \t#*]*{mark}[ \t]+\d+", text, re.MULTILINE)) >= int(rule["num_sections"])


def _two(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _repeats(text: str, rule: Mapping[str, Any]) -> bool:
    return text.strip().casefold().startswith(str(rule["prompt_to_repeat"]).strip().casefold())


def _ends(text: str, rule: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').casefold().endswith(str(rule["end_phrase"]).strip().casefold())


def _letter(text: str, rule: Mapping[str, Any]) -> bool:
    count = text.casefold().count(str(rule["letter"]).casefold())
    return _compare(count, rule.get("let_relation"), rule["let_frequency"])


def _keyword(text: str, rule: Mapping[str, Any]) -> bool:
    return _compare(_times(text, str(rule["keyword"])), rule.get("relation"), rule["frequency"])


def _sentences(text: str) -> int:
    return len(_SENTENCE_END.findall(text)) or int(bool(text.strip()))


RULES: dict[str, Rule] = {
    "keywords:existence": lambda t, r: all(_times(t, str(word)) for word in r["keywords"]),
    "keywords:forbidden_words": lambda t, r: not any(_times(t, str(word)) for word in r["forbidden_words"]),
    "keywords:frequency": _keyword,
    "keywords:letter_frequency": _letter,
    "language:response_language": _language,
    "length_constraints:number_words": lambda t, r: _compare(len(_WORD.findall(t)), r.get("relation"), r["num_words"]),
    "length_constraints:number_sentences": lambda t, r: _compare(_sentences(t), r.get("relation"), r["num_sentences"]),
    "length_constraints:number_paragraphs": lambda t, r: len(_paragraphs(t)) == int(r["num_paragraphs"]),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": (
        lambda t, r: len(re.findall(r"\[[^\[\]]{1,200}\]", t)) >= int(r["num_placeholders"])
    ),
    "detectable_content:postscript": lambda t, r: str(r["postscript_marker"]).casefold() in t.casefold(),
    "detectable_format:number_bullet_lists": (
        lambda t, r: len(re.findall(r"^[ \t]*[*+-][ \t]+\S", t, re.MULTILINE)) == int(r["num_bullets"])
    ),
    "detectable_format:number_highlighted_sections": (
        lambda t, r: len(re.findall(r"\*{1,2}[^*\n]{1,500}\*{1,2}", t)) >= int(r["num_highlights"])
    ),
    "detectable_format:title": lambda t, r: bool(re.search(r"<<[^<>\n]{1,500}>>", t)),
    "detectable_format:json_format": lambda t, r: _is_json(t),
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": (
        lambda t, r: any(f"my answer is {word}." in t.casefold() for word in ("yes", "no", "maybe"))
    ),
    "combination:two_responses": lambda t, r: _two(t),
    "combination:repeat_prompt": _repeats,
    "startend:end_checker": _ends,
    "startend:quotation": lambda t, r: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
    "change_case:english_capital": lambda t, r: t.isupper(),
    "change_case:english_lowercase": lambda t, r: t.islower(),
    "change_case:capital_word_frequency": _capitals,
    "punctuation:no_comma": lambda t, r: "," not in t and "，" not in t,
}
"""(answer, arguments) -> followed, by IFEval's name."""


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    if len(final) > MAX_CHARS:
        return Verdict(0.0, f"an answer of more than {MAX_CHARS} characters")
    rules = read_rules(answer, extra)
    broken = [name for name, arguments in rules if not RULES[name](final, arguments)]
    share = 1 - len(broken) / len(rules)
    if not broken:
        return Verdict(1.0, f"{len(rules)} instructions followed")
    return Verdict(share if extra.get("partial") else 0.0, f"not followed: {', '.join(broken)}"[:300])


def read_rules(answer: Any, extra: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, arguments) of every instruction. Raises ValueError where there is none, or one that is not known."""
    names, arguments = extra.get("instruction_id_list"), extra.get("kwargs")
    if names:
        found = list(zip(names, arguments or [{}] * len(names), strict=True))
    else:
        found = [(str(one["id"]), one) for one in extra.get("instructions") or answer or ()]
    if not found:
        raise ValueError("no instructions are given")
    for name, _ in found:
        if name not in RULES:
            raise ValueError(f"instruction {name!r} is not known")
    return found


VERIFIER = Verifier("instruction_following", check, box=OPTIONAL)

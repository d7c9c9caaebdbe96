"""Two ways in which a text goes bad while its final answer stays right: languages mixed, and text repeated.

The rules and their limits are the released reward system's (language_mix, detect_repeat); linear in the text.
"""

from __future__ import annotations

import re

CHINESE_CHARS, CHINESE_SHARE = 50, 0.8
"""A Chinese paragraph: at least so many characters, so much of it Chinese."""
ENGLISH_WORDS, ENGLISH_SHARE = 200, 0.7
"""An English paragraph: at least so many words, so much of its letters and digits English."""
WINDOW, REPEATS = 50, 10
"""Repetition: one window of so many characters at so many places that don't overlap."""

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_ENGLISH = re.compile(r"[A-Za-z]")
_WORD = re.compile(r"[A-Za-z]+")
_BLANK = re.compile(r"\s+")


def fault(text: str) -> str:
    """What is wrong with the style of a text, empty if nothing is."""
    if mixes_languages(text):
        return "a Chinese and an English paragraph in one text"
    if (times := repetition(text)) >= REPEATS:
        return f"{WINDOW} characters that come {times} times"
    return ""


def mixes_languages(text: str) -> bool:
    """True where one paragraph is Chinese and another is English; a few foreign words are fine."""
    chinese = english = False
    for paragraph in text.split("\n"):
        solid = len(_BLANK.sub("", paragraph))
        if solid == 0:
            continue
        found = len(_CHINESE.findall(paragraph))
        if found >= CHINESE_CHARS and found > CHINESE_SHARE * solid:
            chinese = True
        elif len(_WORD.findall(paragraph)) >= ENGLISH_WORDS:
            english = english or len(_ENGLISH.findall(paragraph)) > ENGLISH_SHARE * solid
        if chinese and english:
            return True
    return False


def repetition(text: str) -> int:
    """How often the most frequent window of 50 characters comes, places that overlap counted once.

    Windows of one repeated character (rules of dashes, runs of blanks) don't count.
    """
    text = _BLANK.sub(" ", text)
    if len(text) < WINDOW * REPEATS:
        return 0
    seen: dict[int, int] = {}  # hash of a window -> times; the windows themselves would be 50 times the text
    free_from: dict[int, int] = {}
    most = 1
    for start in range(len(text) - WINDOW + 1):
        window = text[start : start + WINDOW]
        key = hash(window)
        if start < free_from.get(key, 0):
            continue
        free_from[key] = start + WINDOW
        seen[key] = times = seen.get(key, 0) + 1
        if times > most and len(set(window)) > 2:
            most = times
    return most

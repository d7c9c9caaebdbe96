"""Numbers as answers write them. A number is recognised by a pattern and read by float: nothing is evaluated."""

from __future__ import annotations

import math
import re
import unicodedata

MAX_CHARS = 64
_NUMBER = re.compile(
    r"""(?P<sign>[+-]?)\s?(?P<currency>[$€£¥₩₹]?)\s?
    (?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)
    (?:\s?(?:[eE]|[x×*·]\s?10\s?(?:\^|\*\*)?\s?)\{?(?P<exponent>[+-]?\d{1,3})\}?)?
    (?:\s?/\s?(?P<below>\d+(?:\.\d+)?))?
    \s?(?P<percent>%?)""",
    re.VERBOSE,
)
_LATEX = (("\\times", "×"), ("\\cdot", "·"), ("\\%", "%"), ("\\$", "$"), ("\\,", ""), ("\\!", ""), ("{,}", ","))


def plain(text: str) -> str:
    """Compatibility characters folded, minus signs unified, LaTeX's spellings of number parts undone, $..$ removed."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").strip()
    for latex, sign in _LATEX:
        text = text.replace(latex, sign)
    if len(text) > 2 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    return text.rstrip(".。") if text.count(".") == 1 and text.endswith(".") else text


def parse_number(text: str) -> float | None:
    """The finite number that the whole text is, else None. "50 %" is 0.5, "1,234" is 1234, "3/4" is 0.75."""
    read = parse_with_percent(text)
    return None if read is None else read[0] / 100 if read[1] else read[0]


def parse_with_percent(text: str) -> tuple[float, bool] | None:
    """(number as written, whether a percent sign follows it). None where the text is no finite number."""
    if len(text) > MAX_CHARS:
        return None
    found = _NUMBER.fullmatch(plain(text))
    if found is None:
        return None
    value = float(found["digits"].replace(",", ""))
    if found["exponent"]:
        value *= 10.0 ** min(int(found["exponent"]), 308)
    if found["below"]:
        if float(found["below"]) == 0:
            return None
        value /= float(found["below"])
    if not math.isfinite(value):
        return None
    return -value if found["sign"] == "-" else value, bool(found["percent"])


def relative_error(a: float, b: float) -> float:
    """|a - b| / (|b| + 1e-6): the released code's measure; b is the reference. 1e-6 keeps b = 0 answerable."""
    return abs(a - b) / (abs(b) + 1e-6)


def close(a: float, b: float, tolerance: float) -> bool:
    """Within a relative tolerance of the reference b; two integers only where they are equal."""
    if a.is_integer() and b.is_integer() and max(abs(a), abs(b)) < 2.0**53:
        return a == b
    return relative_error(a, b) < tolerance

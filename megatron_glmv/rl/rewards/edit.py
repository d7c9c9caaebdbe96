"""Edit distance and longest common subsequence, one bit a character of the first text (Myers 1999, Hyyrö 2003).

m, n lengths. n steps on integers of m bits: 5,000 x 5,000 characters take about 20 ms.
"""

from __future__ import annotations

MAX_CHARS = 20_000
"""Of either text; 20,000 x 20,000 stay below a second."""


def distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements from a to b. Raises ValueError above MAX_CHARS."""
    a, b = _ends_off(a, b)
    if not a or not b:
        return max(len(a), len(b))
    where = _places(a)
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    plus, minus, result = full, 0, len(a)
    for sign in b:
        equal = where.get(sign, 0)
        vertical = equal | minus
        horizontal = (((equal & plus) + plus) ^ plus) | equal
        up = minus | (full & ~(horizontal | plus))
        down = plus & horizontal
        result += bool(up & last) - bool(down & last)
        up = (up << 1 | 1) & full
        down = (down << 1) & full
        plus = down | (full & ~(vertical | up))
        minus = up & vertical
    return result


def common(a: str, b: str) -> int:
    """Length of the longest common subsequence. Raises ValueError above MAX_CHARS."""
    _refuse_long(a, b)
    where, full = _places(a), (1 << len(a)) - 1
    row = full
    for sign in b:
        hit = row & where.get(sign, 0)
        row = ((row + hit) | (row - hit)) & full
    return len(a) - row.bit_count()


def similarity(a: str, b: str) -> float:
    """1 - distance / longer length; two empty texts are alike."""
    longer = max(len(a), len(b))
    return 1 - distance(a, b) / longer if longer else 1.0


def overlap(a: str, b: str) -> float:
    """Longest common subsequence / longer length."""
    longer = max(len(a), len(b))
    return common(a, b) / longer if longer else 1.0


def _refuse_long(a: str, b: str) -> None:
    if max(len(a), len(b)) > MAX_CHARS:
        raise ValueError(f"a text of more than {MAX_CHARS} characters")


def _ends_off(a: str, b: str) -> tuple[str, str]:
    """Both without their common start and end: they cost nothing."""
    _refuse_long(a, b)
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    a, b = a[start:], b[start:]
    shorter = min(len(a), len(b))
    end = next((i for i in range(shorter) if a[-1 - i] != b[-1 - i]), shorter)
    return a[: len(a) - end], b[: len(b) - end]


def _places(text: str) -> dict[str, int]:
    """Character -> the bits of its places."""
    where: dict[str, int] = {}
    for place, sign in enumerate(text):
        where[sign] = where.get(sign, 0) | 1 << place
    return where

"""Boxes and points as GLM writes them: [x1, y1, x2, y2] or [x, y] in thousandths of the picture's width and height."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

SCALE = 1000.0
MAX_BOXES = 64
"""Of one answer: matching is cubic in them, and no reference has more."""
MAX_CHARS = 20_000

Box = tuple[float, float, float, float]
Point = tuple[float, float]

_NUMBER = r"\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*"
_BOX = re.compile(rf"[\[(]{','.join([_NUMBER] * 4)}[\])]")
_POINT = re.compile(rf"[\[(]{','.join([_NUMBER] * 2)}[\])]")


def read_boxes(text: str) -> list[Box]:
    """Every [a, b, c, d] of a text. Raises ValueError where there are too many."""
    if len(text) > MAX_CHARS:
        raise ValueError(f"boxes in more than {MAX_CHARS} characters")
    found: list[Box] = []
    for match in _BOX.finditer(text):
        x1, y1, x2, y2 = map(float, match.groups())
        found.append((x1, y1, x2, y2))
        if len(found) > MAX_BOXES:
            raise ValueError(f"more than {MAX_BOXES} boxes")
    return found


def read_point(text: str) -> Point | None:
    """The one [x, y] of a text, or the middle of its one box; None where there is neither or several."""
    if len(text) > MAX_CHARS:
        return None
    points = [(float(m[1]), float(m[2])) for m in _POINT.finditer(text)] + [middle(box) for box in read_boxes(text)]
    return points[0] if len(points) == 1 else None


def reference_boxes(answer: Any, size: Sequence[float] | None = None) -> list[Box]:
    """The reference: text, one box, or a list of boxes. `size` = [width, height] says that it is in pixels."""
    if isinstance(answer, str):
        boxes = read_boxes(answer)
    elif answer and isinstance(answer[0], (int, float)):
        boxes = [_box(answer)]
    else:
        boxes = [_box(one) for one in answer]
    if size is None:
        return boxes
    w, h = (SCALE / float(side) for side in size)
    return [(x1 * w, y1 * h, x2 * w, y2 * h) for x1, y1, x2, y2 in boxes]


def _box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = map(float, numbers)
    return x1, y1, x2, y2


def middle(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def inside(point: Point, box: Box) -> bool:
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def area(box: Box) -> float:
    """0 for a box whose corners are the wrong way round."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 where one of them has no area."""
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    if area(a) == 0 or area(b) == 0 or shared == 0:
        return 0.0
    return shared / (area(a) + area(b) - shared)


def matched(said: Sequence[Box], meant: Sequence[Box], tau: float) -> int:
    """The most pairs with IoU > tau, each box in one pair at most (Kuhn's augmenting paths)."""
    likes = [[j for j, there in enumerate(meant) if iou(here, there) > tau] for here in said]
    taken: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j in likes[i]:
            if j not in tried:
                tried.add(j)
                if j not in taken or place(taken[j], tried):
                    taken[j] = i
                    return True
        return False

    return sum(place(i, set()) for i in range(len(said)))

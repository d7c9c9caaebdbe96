"""Actions on a screen in the three forms that the verifier `gui_action` grades, read and written.

    mobile  {"action_type":"click","box_2d":[x1,y1,x2,y2]}     {"action_type":"navigate_back"}
    pc      left_click(start_box='[x,y]')                      press_back()
    web     Click [3]                                          GoBack

Boxes and points in thousandths of the screen; labels number what can be pressed, from 1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from megatron_glmv.rl.environments.types import InvalidAction
from megatron_glmv.rl.rewards.boxes import Box, Point, middle, read_boxes, read_point
from megatron_glmv.rl.rewards.gui_action import BOX_KEYS, POINT_KEYS, call
from megatron_glmv.rl.rewards.values import read_object

CLICKS = frozenset({"click", "left_click", "tap", "press"})
BACKS = frozenset({"navigate_back", "press_back", "go_back", "back", "goback"})
PLATFORMS = ("mobile", "pc", "web")
_WEB = re.compile(r"([A-Za-z]{1,20}) {0,4}(?:\[ {0,4}(\d{1,3}) {0,4}\])?")


@dataclass(frozen=True)
class Click:
    """At a point in thousandths, or on a label."""

    at: Point | None
    label: int | None = None


@dataclass(frozen=True)
class Back:
    pass


Action = Click | Back


def read_action(text: str, platform: str) -> Action:
    """Raises InvalidAction."""
    try:
        return {"mobile": _mobile, "pc": _pc, "web": _web}[platform](text.strip())
    except InvalidAction:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidAction(f"no {platform} action: {error}"[:80]) from None


def _mobile(text: str) -> Action:
    said = read_object(text)
    kind = str(said.get("action_type", "")).casefold()
    if kind in BACKS:
        return Back()
    place: Any = next((said[key] for key in (*sorted(BOX_KEYS), *sorted(POINT_KEYS)) if key in said), None)
    if place is None and {"x", "y"} <= said.keys():
        place = [said["x"], said["y"]]
    return _click(kind, json.dumps(place))


def _pc(text: str) -> Action:
    kind, given = call(text)
    if kind.casefold() in BACKS:
        return Back()
    return _click(kind.casefold(), next((given[key] for key in sorted(POINT_KEYS) if key in given), ""))


def _web(text: str) -> Action:
    found = _WEB.fullmatch(text)
    kind = found[1].casefold() if found else ""
    if kind in BACKS:
        return Back()
    if found is None or kind not in CLICKS or found[2] is None:
        raise InvalidAction("not Click [label] or GoBack")
    return Click(None, int(found[2]))


def _click(kind: str, place: str) -> Click:
    if kind not in CLICKS:
        raise InvalidAction(f"no action {kind[:24]!r}")
    boxes = read_boxes(place)
    point = middle(boxes[0]) if len(boxes) == 1 else read_point(place)
    if point is None:
        raise InvalidAction("a click needs one box or point")
    return Click(point)


def write_click(box: Box | list[int], label: int, platform: str) -> str:
    """A click on what has this box, in thousandths, and this label."""
    whole = [round(value) for value in box]
    if platform == "mobile":
        return json.dumps({"action_type": "click", "box_2d": whole}, separators=(",", ":"))
    x, y = middle((box[0], box[1], box[2], box[3]))
    return f"left_click(start_box='[{round(x)},{round(y)}]')" if platform == "pc" else f"Click [{label}]"


def write_back(platform: str) -> str:
    return {"mobile": '{"action_type":"navigate_back"}', "pc": "press_back()", "web": "GoBack"}[platform]

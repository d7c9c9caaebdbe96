"""One action on a screen: the same action, and how well its place and text are met (the paper: action + IoU).

Scores of recorded steps as the released verifiers give them:

    mobile  AndroidWorld: JSON objects with the same keys; product over keys of 1 for equal values, IoU of boxes
            (integers 0..999), longest common subsequence / longer length of texts, else 0
    pc      OSWorld: a call such as left_click(start_box='[500,300]'); same name; distance d of points in thousandths
            gives 1 - 0.2 d / 20 up to 20, else max(0, 1 - d / 50); text 0.6 edit + 0.4 bigram Jaccard; keys equal
    web     WebVoyager: `Click [3]`, `Type [3]; [text]`, ...; same action and label; text by common subsequence

`answer`: the recorded action in the same form (mobile may be an object). `extra`: platform, else told from the answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards.boxes import MAX_CHARS, Box, iou, read_boxes, read_point
from megatron_glmv.rl.rewards.edit import overlap, similarity
from megatron_glmv.rl.rewards.types import Verdict, Verifier, wrong
from megatron_glmv.rl.rewards.values import read_object

TEXT_KEYS = frozenset({"text", "goal_status_text", "content", "answer"})
BOX_KEYS = frozenset({"box_2d", "box", "bbox"})
POINT_KEYS = frozenset({"start_box", "end_box", "point"})
LAST = 999

_CALL = re.compile(r"\s*([A-Za-z_]\w{0,40})\s*(?:\((.*)\))?\s*", re.DOTALL)
_ARGUMENT = re.compile(
    r"\s*([A-Za-z_]\w{0,40})\s*=\s*('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\[[^\]]*\]|[^,]*)\s*(?:,|\Z)"
)
_WEB = re.compile(r"([A-Za-z]{1,20}) {0,4}(?:\[([^\]]*)\])? {0,4}(?:; {0,4}(?:\[(.*)\]|(.*)))?", re.DOTALL)


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    if len(final) > MAX_CHARS:
        return wrong(f"an action of more than {MAX_CHARS} characters")
    platform = str(extra.get("platform") or _platform(answer))
    score = {"mobile": mobile, "pc": pc, "web": web}[platform]
    share, reason = score(final, answer)
    return Verdict(share, f"{platform}: {reason}")


def _platform(answer: Any) -> str:
    text = answer.strip() if isinstance(answer, str) else "{"
    if text.startswith(("{", "[", "```")):
        return "mobile"
    return "web" if re.match(r"(Click|Type|Scroll|Wait|GoBack|Bing|Google|Key|ANSWER)\b", text) else "pc"


def mobile(final: str, answer: Any) -> tuple[float, str]:
    said, meant = read_object(final), read_object(answer)
    if said.keys() != meant.keys():
        return 0.0, f"keys {sorted(said)} instead of {sorted(meant)}"[:200]
    share = 1.0
    for key, goal in meant.items():
        part = _mobile_value(key, said[key], goal)
        if part == 0:
            return 0.0, f"another {key}"
        share *= part
    return share, "the same action"


def _mobile_value(key: str, said: Any, meant: Any) -> float:
    if type(said) is type(meant) and said == meant and key not in BOX_KEYS:
        return 1.0
    if key in BOX_KEYS:
        a, b = (read_boxes(json.dumps(value)) for value in (said, meant))
        return iou(a[0], b[0]) if len(a) == len(b) == 1 and _legal(a[0]) else 0.0
    if key in TEXT_KEYS and isinstance(said, str) and isinstance(meant, str):
        return overlap(said, meant)
    return 0.0


def _legal(box: Box) -> bool:
    return all(n.is_integer() and 0 <= n <= LAST for n in box) and box[0] <= box[2] and box[1] <= box[3]


def pc(final: str, answer: Any) -> tuple[float, str]:
    (said, given), (meant, goals) = call(final), call(str(answer))
    if said != meant:
        return 0.0, f"{said} instead of {meant}"
    share = 1.0
    for key, goal in goals.items():
        if key == "element_info":
            continue
        if key not in given:
            return 0.0, f"without {key}"
        if key in POINT_KEYS:
            share *= _near(given[key], goal)
        elif key in TEXT_KEYS:
            share *= _text(given[key], goal)
        else:
            share *= given[key].strip().casefold() == goal.strip().casefold()
        if share == 0:
            return 0.0, f"another {key}"
    return share, "the same action"


def call(text: str) -> tuple[str, dict[str, str]]:
    """(name, arguments by keyword) of `name(a='..', b=..)` or of a bare name. Raises ValueError for anything else."""
    found = _CALL.fullmatch(text)
    if found is None:
        raise ValueError("no call of the form name(key='value')")
    arguments, rest, place = {}, found[2] or "", 0
    while place < len(rest) and rest[place:].strip():
        one = _ARGUMENT.match(rest, place)
        if one is None or one[1] in arguments:
            raise ValueError("arguments have to be key='value', each once")
        arguments[one[1]] = one[2][1:-1] if one[2][:1] in ("'", '"') else one[2]
        place = one.end()
    return found[1], arguments


def _near(said: str, meant: str) -> float:
    a, b = read_point(said), read_point(meant)
    if a is None or b is None:
        return 0.0
    d = math.dist(a, b)
    return 1 - 0.2 * d / 20 if d <= 20 else max(0.0, 1 - d / 50)


def _text(said: str, meant: str) -> float:
    a, b = ({text[i : i + 2] for i in range(len(text) - 1)} for text in (said, meant))
    jaccard = len(a & b) / len(a | b) if a | b else float(said == meant)
    return 0.6 * similarity(said, meant) + 0.4 * jaccard


def web(final: str, answer: Any) -> tuple[float, str]:
    said, meant = (_WEB.fullmatch(text.strip()) for text in (final, str(answer)))
    if said is None or meant is None:
        return 0.0, "no action of the form Name [label]; [text]"
    if said[1].casefold() != meant[1].casefold():
        return 0.0, f"{said[1][:40]} instead of {meant[1]}"
    if (said[2] or "").strip() != (meant[2] or "").strip():
        return 0.0, "another element"
    a, b = ((m[3] if m[3] is not None else m[4] or "").strip() for m in (said, meant))
    if meant[1].casefold() == "scroll":
        return float(a.casefold() == b.casefold()), "direction"
    return overlap(a, b), "the same action"


VERIFIER = Verifier("gui_action", check)

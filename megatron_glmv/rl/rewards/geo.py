"""Where a picture was taken: a share between 0 and 1 (the paper scores it non-binary).

Coordinates on both sides ([lat, lon] in degrees): GeoGuessr's 5000 points as a share, 0.99866017 ^ (metres / 1000)
scaled to the world, 1 within 25 m. Names: `answer` is text or {"address": .., "name": ..}; a judge model grades half
for the address, half for the name (the released rule); without one, equal text counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from megatron_glmv.evaluate.metrics import normalise
from megatron_glmv.rl.rewards.exact import same_text
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong
from megatron_glmv.rl.rewards.values import read_object

EARTH_M = 6_371_000.0
WITHIN_M = 25.0
PER_KM = 0.99866017
_PAIR = re.compile(
    r"[\[(]?\s*(-?\d{1,3}(?:\.\d{1,12})?)\s*°?\s*([NS]?)\s*,\s*(-?\d{1,3}(?:\.\d{1,12})?)\s*°?\s*([EW]?)\s*[\])]?"
)


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    meant = coordinates(answer)
    if meant is not None:
        said = coordinates(final)
        if said is None:
            return wrong("no coordinates")
        metres = apart(said, meant)
        share = 1.0 if metres <= WITHIN_M else PER_KM ** (metres / 1000)
        return Verdict(share, f"{metres / 1000:.1f} km away")
    if isinstance(answer, Mapping):
        try:
            named = read_object(final)
        except ValueError:
            named = {"name": final}
        share = sum(
            0.5 for key in ("address", "name") if normalise(str(answer.get(key, ""))) == _part(named, key) != ""
        )
        return right("address and name") if share == 1 else Verdict(share, f"rules give {share}", undecided=True)
    return right("the same text") if same_text(final, answer) else undecided("another text")


def coordinates(value: Any) -> tuple[float, float] | None:
    """(latitude, longitude) of a pair of numbers or the text of one; None if it is none or lies outside the globe."""
    if isinstance(value, str):
        found = _PAIR.fullmatch(value.strip()) if len(value) < 128 else None
        if found is None:
            return None
        pair = float(found[1]) * (-1 if found[2] == "S" else 1), float(found[3]) * (-1 if found[4] == "W" else 1)
    elif isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(n, (int, float)) for n in value):
        pair = float(value[0]), float(value[1])
    else:
        return None
    return pair if abs(pair[0]) <= 90 and abs(pair[1]) <= 180 else None


def apart(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Great-circle distance in metres (haversine)."""
    (lat1, lon1), (lat2, lon2) = ((math.radians(n) for n in point) for point in (a, b))
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_M * math.asin(math.sqrt(min(1.0, h)))


def _part(named: Mapping[str, Any], key: str) -> str:
    return normalise(str(named.get(key, "")))


RUBRIC = (
    "Grade from 0 to 1 how well the answer names the place of the reference: half for the address (country, region, "
    "city as far as the reference has them), half for the name of the place."
)
VERIFIER = Verifier("geo", check, rubric=RUBRIC, graded=True)

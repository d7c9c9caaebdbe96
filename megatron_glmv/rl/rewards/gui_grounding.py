"""The element of a screen: IoU of the box (the paper's Table 1), or whether the point lies in the element.

`answer`: the element's box; `extra`: size [width, height] where it is in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards.boxes import inside, iou, read_boxes, read_point, reference_boxes
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, wrong


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    meant = reference_boxes(answer, extra.get("size"))
    said = read_boxes(final)
    if len(meant) != 1:
        return wrong("the reference has to be one box")
    if len(said) == 1:
        share = iou(said[0], meant[0])
        return Verdict(share, f"IoU {share:.3f}")
    point = read_point(final)
    if point is None:
        return wrong(f"{len(said)} boxes instead of one" if said else "neither a box nor a point")
    return right("a point inside") if inside(point, meant[0]) else wrong("a point outside")


VERIFIER = Verifier("gui_grounding", check)

"""Grounding: boxes that meet one of the reference's with IoU > tau, over all boxes (the paper's Table 1).

"All boxes" are the larger of the two counts, so that neither leaving boxes out nor listing the whole picture pays.
The paper gives no tau: 0.5 here. `answer`: boxes in thousandths as GLM writes them, or pixels with `extra` size
[width, height]; `extra`: tau.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards.boxes import matched, read_boxes, reference_boxes
from megatron_glmv.rl.rewards.types import Verdict, Verifier, wrong

TAU = 0.5


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    meant = reference_boxes(answer, extra.get("size"))
    said = read_boxes(final)
    if not said or not meant:
        return wrong("no box in the answer" if meant else "no box in the reference")
    hits, total = matched(said, meant, float(extra.get("tau", TAU))), max(len(said), len(meant))
    return Verdict(hits / total, f"{hits} of {total} boxes")


VERIFIER = Verifier("grounding", check)

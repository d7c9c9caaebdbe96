"""Ratio-EMA expansion: how many more groups to roll out than to train on, and which of them to train on.

arXiv 2507.01006, section 5.3: "expansion_ratio = 1/(1 - not_valid_sample_rate) ... maintain an exponential moving
average ... and use it as the oversampling coefficient in the next iteration"; of what was rolled out those are trained
"whose difficulty is most balanced". The decay and a cap are not stated there; a cap has to be, for the ratio of an
iteration without any valid group is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


def expansion_ratio(valid: int, groups: int, cap: float) -> float:
    """1 / (1 - share of groups that are not valid), at most `cap`. Without groups nothing is known: 1."""
    if groups == 0:
        return 1.0
    return min(cap, groups / valid) if valid else cap


@dataclass(frozen=True)
class Plan:
    """One iteration's groups."""

    rolled: int
    """Groups to roll out."""
    trained: int
    """Groups to train on, the most balanced ones."""


def plan(groups: int, ratio: float, reading: str) -> Plan:
    """The two readings of an oversampling coefficient.

    rollouts: the trained batch is fixed and rollouts are expanded (the paper's words; fewer optimizer steps).
    budget: the rollouts are fixed and the trained set is cut (fewer rollouts). none: all are trained.
    """
    if reading == "rollouts":
        return Plan(math.ceil(groups * ratio - 1e-9), groups)
    if reading == "budget":
        return Plan(groups, max(1, round(groups / ratio)))
    return Plan(groups, groups)


def most_balanced(rewards: Sequence[Sequence[float]], count: int) -> list[int]:
    """Indices, ascending, of the `count` groups whose mean reward is nearest to 1/2: right and wrong answers "as close
    as possible" in number. Among equals the first."""
    order = sorted(range(len(rewards)), key=lambda i: (abs(sum(rewards[i]) / len(rewards[i]) - 0.5), i))
    return sorted(order[:count])

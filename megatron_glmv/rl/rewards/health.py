"""How well each verifier is doing: one weak verifier collapses every domain (the paper, after about 150 steps).

Per verifier over all its items so far: how long a verdict takes, how often there is none in time, how often a judge
model's votes differ or contradict the rules, how many pass, and whether the last window's share of passes is odd. Mean
and deviation over the window of what rewards are made of: the parts of a page's score, a reward model's number.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WINDOW = 256
"""Newest judgements of a verifier that are looked at one by one."""
ENOUGH = 64
"""Fewer say nothing about a share."""
MAX_TIMEOUTS, MAX_DISAGREEMENT, MAX_FORMAT, SIGMAS = 0.02, 0.25, 0.8, 6.0
PASS = 0.5
"""A reward from here on is a pass."""


@dataclass
class VerifierHealth:
    """Counts of one verifier."""

    judged: int = 0
    passed: int = 0
    reward_sum: float = 0.0
    malformed: int = 0
    timeouts: int = 0
    died: int = 0
    failed: int = 0
    """No verdict at all: the judge model, or the reward model, could not be asked."""
    asked: int = 0
    """Judged by a model, or audited by one."""
    disagreed: int = 0
    """Of those: votes that differ, or a model that contradicts the rules."""
    recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """(seconds, reward) of the newest."""
    parts: dict[str, deque[float]] = field(default_factory=dict)
    """The newest values of what rewards are made of, by name."""

    def summary(self) -> dict[str, float]:
        """Everything as numbers; seconds_* and pass_rate_recent over the window."""
        seconds = sorted(s for s, _ in self.recent)
        n = max(1, self.judged)
        return {
            "judged": self.judged,
            "reward_mean": self.reward_sum / n,
            "pass_rate": self.passed / n,
            "pass_rate_recent": self.recent_rate,
            "malformed": self.malformed / n,
            "timeouts": self.timeouts,
            "died": self.died,
            "failed": self.failed,
            "disagreement": self.disagreed / max(1, self.asked),
            "seconds_p50": _quantile(seconds, 0.5),
            "seconds_p95": _quantile(seconds, 0.95),
            "seconds_max": seconds[-1] if seconds else 0.0,
            **{f"{name}_mean": statistics.fmean(values) for name, values in self.parts.items()},
            **{f"{name}_std": statistics.pstdev(values) for name, values in self.parts.items()},
        }

    @property
    def recent_rate(self) -> float:
        return sum(reward >= PASS for _, reward in self.recent) / max(1, len(self.recent))

    def warnings(self) -> list[str]:
        """What looks wrong, in words."""
        if self.judged < ENOUGH:
            return []
        found = []
        if (late := (self.timeouts + self.died) / self.judged) > MAX_TIMEOUTS:
            found.append(f"{late:.0%} of the calls did not end in time or died")
        if self.failed:
            found.append(f"the model that judges could not be asked {self.failed} times")
        if self.asked >= ENOUGH and self.disagreed / self.asked > MAX_DISAGREEMENT:
            found.append(f"judges disagree on {self.disagreed / self.asked:.0%}")
        if self.malformed / self.judged > MAX_FORMAT:
            found.append(f"{self.malformed / self.judged:.0%} of the responses are malformed")
        elif len(self.recent) >= ENOUGH and self.recent_rate in (0.0, 1.0):
            found.append(f"{'all' if self.recent_rate else 'none'} of the last {len(self.recent)} pass")
        elif self.judged >= 4 * WINDOW:
            # as if answers were independent; groups of one prompt are not, hence six sigmas and not three
            rate = min(max(self.passed / self.judged, 0.01), 0.99)
            sigma = math.sqrt(rate * (1 - rate) / len(self.recent))
            if abs(self.recent_rate - rate) > SIGMAS * sigma:
                found.append(f"{self.recent_rate:.0%} of the last {len(self.recent)} pass, {rate:.0%} of all")
        return found


class Health:
    """Of all verifiers of a `Judge`, since it was made."""

    def __init__(self) -> None:
        self.verifiers: dict[str, VerifierHealth] = {}

    def of(self, verifier: str) -> VerifierHealth:
        return self.verifiers.setdefault(verifier, VerifierHealth())

    def add(
        self,
        verifier: str,
        reward: float,
        seconds: float,
        decider: str,
        failure: str,
        failed: bool,
        parts: Mapping[str, float] | None = None,
    ) -> None:
        """One judgement. `decider` and `failure` as a judgement's verifier and a pool's reply have them."""
        one = self.of(verifier)
        one.judged += 1
        one.passed += reward >= PASS
        one.reward_sum += reward
        one.malformed += decider in ("format", "style")
        one.timeouts += failure == "timeout"
        one.died += failure == "died"
        one.failed += failed
        one.recent.append((seconds, reward))
        for name, value in (parts or {}).items():
            one.parts.setdefault(name, deque(maxlen=WINDOW)).append(value)

    def summary(self) -> dict[str, dict[str, float]]:
        return {name: self.verifiers[name].summary() for name in sorted(self.verifiers)}

    def warnings(self) -> list[str]:
        return [f"{name}: {said}" for name in sorted(self.verifiers) for said in self.verifiers[name].warnings()]


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def as_metrics(health: Health) -> dict[str, Any]:
    """Flat, for metrics.jsonl: verifier/<name>/<figure>."""
    return {f"verifier/{name}/{key}": value for name, s in health.summary().items() for key, value in s.items()}

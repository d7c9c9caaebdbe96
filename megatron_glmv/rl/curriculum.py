"""Which prompts are asked next: difficulty tiers from pass rates, and sampling that leans toward the middle.

arXiv 2507.01006, section 5.3, has offline grading into tiers, online grading merged with it, and a sampling ratio of
each tier that is computed anew every iteration; it gives no bins, weights or formula. Those here were chosen on a toy
(docs/rlcs.md): tiers by fixed edges of the pass rate, the weight of a tier 4 p (1 - p) + floor.

A cell is (domain, subcategory, tier). Everything is a function of the seed, the step and what was recorded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_glmv.config.rl import CurriculumConfig
from megatron_glmv.data.types import Json
from megatron_glmv.rl.advantage import valid

Category = tuple[str, str]
"""Domain and subcategory."""
Cell = tuple[str, str, int]


@dataclass(frozen=True)
class Place:
    """What the curriculum knows of a prompt beforehand."""

    id: str
    domain: str
    task: str
    """The subcategory."""
    label: float | None = None
    """Pass rate that an expert or an earlier model gives it; None: unknown."""


def tier_of(rate: float, edges: Sequence[float]) -> int:
    """0 (very hard) to len(edges) (very easy)."""
    return bisect_right(edges, rate)


def tier_centre(tier: int, edges: Sequence[float]) -> float:
    bounds = [0.0, *edges, 1.0]
    return (bounds[tier] + bounds[tier + 1]) / 2


def tier_weight(rate: float, floor: float) -> float:
    """4 p (1 - p) + floor: 1 in the middle; both ends keep `floor`, so that a tier is still looked at now and then. The
    expected squared advantage of a binary reward is p (1 - p)."""
    return 4.0 * rate * (1.0 - rate) + floor


@dataclass
class Evidence:
    """Answers seen to one prompt, older ones counting less."""

    right: float = 0.0
    """Sum of rewards."""
    seen: float = 0.0

    @property
    def rate(self) -> float:
        return self.right / self.seen

    def add(self, rewards: Sequence[float], keep: float) -> None:
        self.right = keep * self.right + sum(rewards)
        self.seen = keep * self.seen + len(rewards)


@dataclass
class Running:
    """A cell's running pass rate and share of valid groups."""

    rate: float
    valid: float


@dataclass
class Curriculum:
    """Evidence on prompts and cells, and the draw of each iteration's prompts."""

    config: CurriculumConfig
    places: Sequence[Place]
    seed: int
    evidence: dict[str, Evidence] = field(default_factory=dict)
    running: dict[Cell, Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_category: dict[Category, list[Place]] = {}
        for place in self.places:
            self._by_category.setdefault((place.domain, place.task), []).append(place)
            if place.label is not None and place.id not in self.evidence:
                weight = self.config.label_weight
                self.evidence[place.id] = Evidence(place.label * weight, weight)
        self._category = {place.id: (place.domain, place.task) for place in self.places}
        if len(self._category) != len(self.places):
            raise ValueError("two prompts have the same id")

    # -- grading ---------------------------------------------------------------------------------------------------

    def to_grade(self) -> list[str]:
        """Ids of prompts to grade before the first step: `grade` of each subcategory, drawn by the seed, or all."""
        found = []
        for category in sorted(self._by_category):
            places = self._by_category[category]
            generator = np.random.default_rng([self.seed, *_key("grade", *category)])
            count = min(self.config.grade, len(places))
            found += [places[i].id for i in sorted(generator.choice(len(places), count, replace=False))]
        return found

    def record(self, id: str, rewards: Sequence[float]) -> None:
        """Merges the rewards of one group into what is known of the prompt and of the cell it stands in just before.

        That is the cell it was drawn from, but for a prompt without evidence of its own, whose tier is its
        subcategory's: groups recorded since may have moved it.
        """
        cell = self.cell(id)
        self.evidence.setdefault(id, Evidence()).add(rewards, self.config.keep)
        before = self._running(cell)
        ema, observed = self.config.ema, float(np.mean(rewards))
        self.running[cell] = Running(
            ema * before.rate + (1 - ema) * observed, ema * before.valid + (1 - ema) * float(valid(rewards))
        )

    def rate(self, id: str) -> float:
        """Pass rate of a prompt: its own, else the mean of its subcategory's graded ones, else 1/2."""
        known = self.evidence.get(id)
        return known.rate if known is not None else self._category_rate(self._category[id])

    def _category_rate(self, category: Category) -> float:
        rates = [self.evidence[p.id].rate for p in self._by_category[category] if p.id in self.evidence]
        return float(np.mean(rates)) if rates else 0.5

    def tier(self, id: str) -> int:
        return tier_of(self.rate(id), self.config.edges)

    def cell(self, id: str) -> Cell:
        return (*self._category[id], self.tier(id))

    def cells(self) -> dict[Cell, list[str]]:
        """Prompt ids of each cell that has any."""
        found: dict[Cell, list[str]] = {}
        for category in sorted(self._by_category):
            default = self._category_rate(category)
            for place in self._by_category[category]:
                known = self.evidence.get(place.id)
                tier = tier_of(known.rate if known is not None else default, self.config.edges)
                found.setdefault((*category, tier), []).append(place.id)
        return found

    def occupancy(self) -> list[int]:
        """Prompts of each tier."""
        counts = Counter(cell[2] for cell, ids in self.cells().items() for _ in ids)
        return [counts[tier] for tier in range(len(self.config.edges) + 1)]

    def _running(self, cell: Cell) -> Running:
        """What a cell that was not looked at yet is expected to be: its tier's centre, half of its groups valid."""
        return self.running.get(cell) or Running(tier_centre(cell[2], self.config.edges), 0.5)

    # -- sampling --------------------------------------------------------------------------------------------------

    def weights(self, count: int) -> dict[Cell, float]:
        """Share of each cell in the next `count` prompts; sums to 1.

        Domains get `config.mix` (by default alike). Inside a domain a cell weighs `tier_weight` of its running pass
        rate, times its prompts where these are fewer than `count`: a nearly empty tier must not be asked again and
        again. Without the curriculum all prompts of a domain are alike.
        """
        cells = self.cells()
        domains = sorted({cell[0] for cell in cells})
        mix = {d: self.config.mix.get(d, 0.0) if self.config.mix else 1.0 for d in domains}
        total = sum(mix.values())
        shares: dict[Cell, float] = {}
        for domain in domains:
            inside = {
                cell: tier_weight(self._running(cell).rate, self.config.floor) * min(len(ids), count)
                if self.config.enabled
                else float(len(ids))
                for cell, ids in cells.items()
                if cell[0] == domain
            }
            whole = sum(inside.values())
            shares |= {cell: mix[domain] / total * weight / whole for cell, weight in inside.items()}
        return shares

    def draw(self, step: int, count: int, part: int = 0, without: Iterable[str] = ()) -> list[str]:
        """`count` prompts of an iteration, none twice; fewer where the pool has no more. `part` numbers further draws
        of the same step, which leave out those of `without`."""
        generator = np.random.default_rng([self.seed, *_key("draw", step, part)])
        used = set(without)
        left = {cell: [id for id in ids if id not in used] for cell, ids in self.cells().items()}
        shares = self.weights(count)
        drawn: list[str] = []
        while len(drawn) < count:
            cells = [cell for cell, ids in left.items() if ids and shares[cell] > 0]
            if not cells:
                break
            weights = np.array([shares[cell] for cell in cells])
            ids = left[cells[int(generator.choice(len(cells), p=weights / weights.sum()))]]
            drawn.append(ids.pop(int(generator.integers(len(ids)))))
        return drawn

    def best_valid_share(self) -> float:
        """The largest running share of valid groups among the cells that were looked at; 1 while none was."""
        return max((running.valid for running in self.running.values()), default=1.0)

    # -- checkpoint ------------------------------------------------------------------------------------------------

    def state(self) -> Json:
        """Integers, floats and text only."""
        return {
            "evidence": {id: [e.right, e.seen] for id, e in self.evidence.items()},
            "running": [[*cell, r.rate, r.valid] for cell, r in self.running.items()],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        known = set(self._category)
        self.evidence = {id: Evidence(*pair) for id, pair in state["evidence"].items() if id in known}
        self.running = {(d, t, int(tier)): Running(rate, share) for d, t, tier, rate, share in state["running"]}


def _key(*parts: object) -> list[int]:
    """Words of a seed sequence from text and numbers, the same in every process."""
    return [byte for part in parts for byte in (*str(part).encode(), 0)]

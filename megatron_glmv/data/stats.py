"""What a data set holds, by domain: samples, tokens, visual tokens, frames, and what cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.lengths import Layouts, Lengths, measure


@dataclass(frozen=True, eq=False)
class Stats:
    """Measures of every sample and the domain of each."""

    lengths: Lengths
    domains: NDArray[np.str_]
    """[n]; `other` where a sample names none."""

    def rows(self) -> list[tuple[str, ...]]:
        """Lines of a table: the domains by name, then all together."""
        names = sorted(set(self.domains.tolist()))
        masks = [(name, self.domains == name) for name in names]
        return [self._row(name, mask) for name, mask in [*masks, ("all", np.ones(len(self.domains), bool))]]

    def _row(self, name: str, mask: NDArray[np.bool_]) -> tuple[str, ...]:
        found = self.lengths
        tokens = found.tokens[mask]
        usable = tokens[tokens > 0]
        middle, high, most = np.percentile(usable, [50, 95, 100]) if len(usable) else (0, 0, 0)
        sums = (int(column[mask].sum()) for column in (found.media, found.tokens, found.visual, found.trained))
        numbers = (len(usable), len(tokens) - len(usable), *sums, int(found.frames[mask].sum()))
        return (name, *(f"{n:,}" for n in numbers), f"{middle:,.0f}", f"{high:,.0f}", f"{most:,.0f}")


COLUMNS = (
    *("domain", "samples", "unusable", "media", "tokens", "visual", "trained", "frames"),
    *("median length", "95 %", "longest"),
)


def collect(layouts: Layouts) -> Stats:
    """Counts once and keeps the counts beside the index (`lengths.measure`)."""
    dataset = layouts.dataset
    domains = np.array([dataset.entry(i).domain or "other" for i in range(len(dataset))])
    return Stats(measure(layouts), domains)

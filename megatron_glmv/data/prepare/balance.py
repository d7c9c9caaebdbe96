"""Step 8, over the whole corpus: concept-balanced resampling as MetaCLIP's algorithm 1 (arXiv 2309.16671).

A concept named by n samples keeps each of them with p = min(1, (cap / n)^temperature), on its own; a sample stays if
any of its concepts keeps it. A concept's expected samples are then cap, and what other concepts of its samples keep.
The draw is a hash of seed, key and concept: it does not depend on the order of samples or on who computes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from megatron_glmv.data.prepare import text
from megatron_glmv.data.prepare.options import BalanceOptions, Options
from megatron_glmv.data.prepare.step import verdict
from megatron_glmv.data.types import Json

VERSION = 1


class Balance:
    name = "balance"

    def skipped(self, options: Options) -> str:
        return "" if options.balance.cap else "no cap; balance.cap=N thins concepts with more than N samples"

    def identity(self, options: Options) -> Json:
        rules = {name: value for name, value in vars(options.balance).items() if name != "concepts"}
        return {"version": VERSION, "options": rules, "seed": options.seed}

    def gather(self, lines: Mapping[str, Json], options: Options) -> Json:
        return lines["concepts"]

    def lines(self, corpus: Sequence[Json], options: Options) -> Iterator[Json]:
        """A line for each sample, in order, from the lines of `concepts`."""
        count = Counter(concept for line in corpus for concept in line.get("concepts", ()))
        for line in corpus:
            yield verdict(line["key"], *judge(line, count, options.balance, options.seed))


def judge(line: Json, count: Counter[str], options: BalanceOptions, seed: int) -> tuple[str, str]:
    """(reason, detail), both empty where the sample stays."""
    if "concepts" not in line:
        return "", ""  # not a caption
    concepts: list[str] = line["concepts"]
    if not concepts:
        return ("", "") if options.unmatched else ("no_concept", "")
    if any(text.draw(seed, "balance", line["key"], c) < share(count[c], options) for c in concepts):
        return "", ""
    rarest = min(concepts, key=lambda c: (count[c], c))
    return "frequent_concept", f"{rarest} x {count[rarest]}"


def share(count: int, options: BalanceOptions) -> float:
    """Probability that a concept of `count` samples keeps one of them."""
    return min(1.0, math.pow(options.cap / count, options.temperature))

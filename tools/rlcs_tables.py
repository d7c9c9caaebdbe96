"""What tools/rlcs_study.py found: a table on the terminal, and study.md, study.csv and study.html (curves)."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_glmv.data.types import Json
from megatron_glmv.report.chart import Line, line_chart
from megatron_glmv.report.html import Markup, tag

BASE = "uniform"
HEADS = (
    "method", "lr", "reached", "rollouts [min-max]", "x uniform", "with grading", "x uniform", "updates", "x uniform",
    "held out, from - to",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The seeds of an arm at one learning rate. Where not all reached the target, means are lower bounds: a run that
    did not counts with the rollouts it made."""

    arm: str
    rate: float
    runs: list[Json]

    @property
    def reached(self) -> int:
        return sum(run["reached"] for run in self.runs)

    def spent(self, graded: bool) -> list[float]:
        """Rollouts of each seed, with those of grading or without."""
        return [run["rollouts"] - (0 if graded else run["graded"]) for run in self.runs]

    @property
    def updates(self) -> list[float]:
        return [run["updates"] for run in self.runs]

    @property
    def ends(self) -> tuple[float, float]:
        """Mean held-out reward before the first update and at the end."""
        courses = [run["course"] for run in self.runs if run["course"]]
        if not courses:
            return math.nan, math.nan
        first, last = ([c[place]["heldout_reward"] for c in courses] for place in (0, -1))
        return statistics.fmean(first), statistics.fmean(last)

    @property
    def rank(self) -> tuple[int, float]:
        """Of two rates the better is smaller."""
        return -self.reached, statistics.fmean(self.spent(False))


def rows_of(results: Sequence[Json]) -> list[Row]:
    """All rates of all arms."""
    found: dict[tuple[str, float], list[Json]] = {}
    for result in results:
        found.setdefault((result["arm"], result["rate"]), []).append(result)
    return [Row(arm, rate, runs) for (arm, rate), runs in sorted(found.items())]


def best_rows(rows: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Each arm at its best rate, `order` first."""
    arms = [*order, *sorted({row.arm for row in rows} - set(order))]
    return [
        min((row for row in rows if row.arm == arm), key=lambda row: row.rank)
        for arm in arms
        if any(row.arm == arm for row in rows)
    ]


def cells(row: Row, base: Row | None) -> list[str]:
    """The row as text; `base` is what its ratios refer to."""
    has_target = any(run["target"] is not None for run in row.runs)
    at_least = ">" if has_target and row.reached < len(row.runs) else ""

    def ratio(mine: Sequence[float], theirs: Sequence[float]) -> str:
        return f"{at_least}{statistics.fmean(mine) / statistics.fmean(theirs):.2f}" if base and has_target else "-"

    def spread(values: Sequence[float]) -> str:
        return f"{at_least}{statistics.fmean(values):,.0f} [{min(values):,.0f}-{max(values):,.0f}]"

    base_spent = base.spent(False) if base else [math.nan]
    before, after = row.ends
    return [
        row.arm,
        f"{row.rate:g}",
        f"{row.reached} of {len(row.runs)}" if has_target else "no target",
        spread(row.spent(False)),
        ratio(row.spent(False), base_spent),
        f"{at_least}{statistics.fmean(row.spent(True)):,.0f}",
        ratio(row.spent(True), base_spent),
        spread(row.updates),
        ratio(row.updates, base.updates if base else [math.nan]),
        f"{before:.3f} - {after:.3f}",
    ]


def _base(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.arm == BASE), None)


def show(results: Sequence[Json], order: Sequence[str]) -> None:
    rows = best_rows(rows_of(results), order)
    table = Table(
        title="Each method at the learning rate where it needs the fewest rollouts; > : not all seeds reached"
    )
    for head in HEADS:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*cells(row, _base(rows)))
    Console(width=160).print(table)


def markdown(rows: Sequence[Row], base: Row | None) -> str:
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row, base)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write_all(results: Sequence[Json], order: Sequence[str], out: Path) -> list[Path]:
    rows = rows_of(results)
    best = best_rows(rows, order)
    base = _base(best)
    files = {name: out / name for name in ("study.md", "study.csv", "study.html")}
    every = "\nAll rates:\n\n" + markdown(rows, base)
    files["study.md"].write_text(markdown(best, base) + every, encoding="utf-8")
    with files["study.csv"].open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["arm", "rate", "seed", "reached", "step", "rollouts", "graded", "heldout", "heldout_greedy"])
        for run in results:
            for point in run["course"]:
                own = [point[key] for key in ("step", "rollouts")]
                ends = [point[key] for key in ("heldout_reward", "heldout_greedy")]
                table.writerow([run["arm"], run["rate"], run["seed"], run["reached"], *own, run["graded"], *ends])
    charts = [_chart([row for row in best if row.arm in order], "methods"), *(_chart([row], row.arm) for row in best)]
    style = Markup(resources.files("megatron_glmv.report").joinpath("assets", "page.css").read_text(encoding="utf-8"))
    head = tag("head", tag("meta", charset="utf-8"), tag("title", "RLCS study"), tag("style", style))
    body = tag("body", tag("main", tag("h1", "RLCS study"), tag("div", *charts, class_="charts")))
    files["study.html"].write_text("<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n", encoding="utf-8")
    return list(files.values())


def _chart(rows: Sequence[Row], title: str) -> Markup | None:
    """Held-out reward by rollouts, a line for each seed; of several rows a colour for each."""
    lines = []
    for number, row in enumerate(rows):
        for run in row.runs:
            points = [(p["rollouts"], p["heldout_reward"]) for p in run["course"]]
            label = row.arm if len(rows) > 1 else f"seed {run['seed']}"
            first = run is row.runs[0] or len(rows) == 1
            lines.append(Line(label if first else "", points, number if len(rows) > 1 else run["seed"], marks=True))
    return line_chart(lines, f"held-out reward, {title}", x_label="rollouts", log=False)

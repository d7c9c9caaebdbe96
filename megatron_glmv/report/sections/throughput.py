"""How fast: tokens a second, time of a step, and how much of it the step waited for data."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from megatron_glmv.report.chart import Line, line_chart
from megatron_glmv.report.html import Child, Markup, join, number, table, tag, whole
from megatron_glmv.report.record import Points, RunRecord
from megatron_glmv.report.sections.curves import metric

WARM = 3
"""First steps that are left out of the table: they allocate and compile."""


class Throughput:
    title = "Throughput"
    anchor = "throughput"

    def render(self, runs: Sequence[RunRecord]) -> Markup | None:
        timed = [run for run in runs if run.series("step_time_s")]
        if not timed:
            return None
        rates = [Line(run.name, tokens_per_second(run), i, smooth=True) for i, run in enumerate(runs)]
        charts = [
            line_chart(rates, "tokens a second", cut=True),
            line_chart(metric(runs, "step_time_s", smooth=True), "time of a step [s]", cut=True),
            line_chart(metric(runs, "data_wait_s", smooth=True), "of which waiting for data [s]", log=False, cut=True),
        ]
        head = ("run", "steps timed", "tokens/s, median", "step [s], median", "step [s], 95 %", "waiting for data")
        return join([tag("div", *charts, class_="charts"), table(head, [_row(run) for run in timed])])


def tokens_per_second(run: RunRecord) -> Points:
    """From the running total of tokens; a step whose predecessor was not recorded has no value."""
    rates, before = [], None
    for line in run.metrics:
        step, tokens, seconds = line.get("step"), line.get("tokens"), line.get("step_time_s")
        if isinstance(step, int) and isinstance(tokens, int) and isinstance(seconds, int | float):
            if before is not None and before[0] == step - 1 and seconds > 0:
                rates.append((step, (tokens - before[1]) / seconds))
            before = (step, tokens)
    return rates


def _row(run: RunRecord) -> list[Child]:
    seconds = [value for _, value in run.series("step_time_s")]
    seconds = seconds[WARM:] or seconds
    waits = [value for _, value in run.series("data_wait_s")]
    waits = waits[WARM:] or waits
    rates = [value for _, value in tokens_per_second(run)]
    rates = rates[WARM:] or rates or [0.0]
    late = sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    share = tag("td", f"{sum(waits) / sum(seconds):.1%}", class_="num") if waits and sum(seconds) else "unknown"
    return [
        run.name,
        whole(len(seconds)),
        whole(round(statistics.median(rates))),
        number(statistics.median(seconds)),
        number(late),
        share,
    ]

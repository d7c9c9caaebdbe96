"""How training went: loss, validation loss by domain, gradient norm, learning rate."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_glmv.report.chart import Line, line_chart
from megatron_glmv.report.html import Markup, absent, tag
from megatron_glmv.report.record import RunRecord

DOMAIN = "val_loss/"


class Curves:
    title = "Training"
    anchor = "training"

    def render(self, runs: Sequence[RunRecord]) -> Markup | None:
        charts = [
            line_chart(metric(runs, "loss", smooth=True), "training loss"),
            line_chart(metric(runs, "val_loss", marks=True), "validation loss"),
            line_chart(_domains(runs), "validation loss by domain"),
            line_chart(metric(runs, "grad_norm", smooth=True), "gradient norm"),
            line_chart(metric(runs, "lr"), "learning rate", log=False),
        ]
        if not any(charts):
            return absent("No step was recorded: metrics.jsonl is empty or not there.")
        silent = [run.name for run in runs if run.metrics and not run.series("val_loss")]
        notes = [
            absent(f"{name} has no validation loss (train.val_every is 0, or it ended before).") for name in silent
        ]
        return tag("div", tag("div", *charts, class_="charts"), notes)


def metric(runs: Sequence[RunRecord], key: str, *, smooth: bool = False, marks: bool = False) -> list[Line]:
    """A line for each run, in the run's colour."""
    return [Line(run.name, run.series(key), i, marks, smooth) for i, run in enumerate(runs)]


def _domains(runs: Sequence[RunRecord]) -> list[Line]:
    """A line for each domain of each run; with several runs the run is named too."""
    lines: list[Line] = []
    for run in runs:
        keys = sorted({key for line in run.metrics for key in line if key.startswith(DOMAIN)})
        for key in keys:
            label = key.removeprefix(DOMAIN) if len(runs) == 1 else f"{run.name}: {key.removeprefix(DOMAIN)}"
            lines.append(Line(label, run.series(key), len(lines), marks=True))
    return lines

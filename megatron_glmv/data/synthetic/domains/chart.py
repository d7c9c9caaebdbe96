"""Charts by matplotlib: coloured bars without axes (tier 0), labelled bars, lines and pies with values to read, and two
series over years.

Values of a chart are a random choice of different levels, so that every place has each of them equally often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_glmv.data.synthetic.canvas import COLOURS, Pixels, Rgb
from megatron_glmv.data.synthetic.domains.drawing import font_file
from megatron_glmv.data.synthetic.domains.objects import NAMES
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

DPI = 100
LEVELS = ((1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6), tuple(range(5, 55, 5)), tuple(range(5, 105, 5)))
COUNT = (4, 3, 5, 6)
"""Bars or points."""
LABELS = {1: tuple("ABCDEF"), 2: ("tea", "milk", "rice", "fish", "salt", "soap", "corn", "beef")}


@dataclass(frozen=True)
class Chart:
    media: tuple[Medium, ...]
    kind: str
    labels: tuple[str, ...]
    """Colours, categories or years, from left to right."""
    series: dict[str, tuple[int, ...]]
    """Name -> its values; one of an empty name where there is one only."""

    @property
    def values(self) -> tuple[int, ...]:
        return next(iter(self.series.values()))


def _unit(colour: Rgb) -> tuple[float, float, float]:
    return colour[0] / 255, colour[1] / 255, colour[2] / 255


def _figure(d: Draw) -> tuple[Any, Any, Any]:
    """(figure, canvas, axes) in the style, axes filling the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(d.side / DPI, d.side / DPI), dpi=DPI, facecolor=_unit(d.style.background))
    canvas = FigureCanvasAgg(figure)
    margin = 0.02 if d.tier == 0 else 0.2 if d.tier == 1 else 0.14
    axes = figure.add_axes((margin, margin, 0.97 - margin, 0.95 - margin), facecolor=_unit(d.style.background))
    return figure, canvas, axes


def _dress(d: Draw, axes: Any, ticks: list[int]) -> None:
    from matplotlib.font_manager import FontProperties

    size = max(6.0, d.side * (0.075 if d.tier == 1 else 0.045 if d.tier == 2 else 0.03)) * 72 / DPI
    face = FontProperties(fname=font_file(d.style.font), size=size)
    ink = _unit(d.style.ink)
    axes.set_yticks(ticks)
    axes.set_ylim(0, ticks[-1] * 1.05)
    axes.tick_params(colors=ink, width=0.5, length=2, pad=1)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_fontproperties(face)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.grid(axis="y", color=ink, linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)


def _pixels(canvas: Any) -> Pixels:
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_bars(d: Draw) -> Chart:
    """Bars in different colours, nothing written."""
    colours, heights = d.some(NAMES, COUNT[0]), d.some(LEVELS[0], COUNT[0])
    _, canvas, axes = _figure(d)
    axes.set_axis_off()
    axes.bar(range(COUNT[0]), heights, width=0.8, color=[_unit(COLOURS[name]) for name in colours])
    axes.set_ylim(0, LEVELS[0][-1])
    axes.axhline(0, color=_unit(d.style.ink), linewidth=2)
    return Chart((Medium(IMAGE, _pixels(canvas)),), "bars", tuple(colours), {"": tuple(heights)})


def draw_labelled(d: Draw) -> Chart:
    """Bars, or at tier 2 a line with marks, over named categories, with values on a grid."""
    labels, values = d.some(LABELS[d.tier], COUNT[d.tier]), d.some(LEVELS[d.tier], COUNT[d.tier])
    kind = "bars" if d.tier == 1 else d.pick(("bars", "line", "steps"))
    _, canvas, axes = _figure(d)
    colour = _unit(COLOURS[d.pick(NAMES)])
    if kind == "bars":
        axes.bar(labels, values, width=0.7, color=colour)
    else:
        style = "steps-mid" if kind == "steps" else "default"
        axes.plot(labels, values, color=colour, marker="o", linewidth=1.5, drawstyle=style)
    _dress(d, axes, list(range(7)) if d.tier == 1 else list(range(0, 55, 5)))
    return Chart((Medium(IMAGE, _pixels(canvas)),), kind, tuple(labels), {"": tuple(values)})


def draw_series(d: Draw) -> Chart:
    """Two series in different colours over years."""
    first = d.between(1990, 2015)
    years = [str(first + number) for number in range(COUNT[3])]
    names = d.some(NAMES, 2)
    first_values = d.some(LEVELS[3], COUNT[3])
    second_values = d.some(LEVELS[3], COUNT[3])
    while any(a == b for a, b in zip(first_values, second_values, strict=True)):  # one mark would hide the other
        second_values = d.some(LEVELS[3], COUNT[3])
    series = dict(zip(names, (tuple(first_values), tuple(second_values)), strict=True))
    kind = d.pick(("bars", "lines"))
    _, canvas, axes = _figure(d)
    for place, (name, values) in enumerate(series.items()):
        colour = _unit(COLOURS[name])
        if kind == "bars":
            axes.bar(np.arange(len(years)) + 0.38 * place - 0.19, values, width=0.36, color=colour)
        else:
            axes.plot(range(len(years)), values, color=colour, marker="os"[place], linewidth=2)
    axes.set_xticks(range(len(years)), years)
    _dress(d, axes, list(range(0, 105, 5)))
    return Chart((Medium(IMAGE, _pixels(canvas)),), kind, tuple(years), series)


def _shown(chart: Chart) -> int:
    return sum(map(len, chart.series.values()))


def ask_extreme(chart: Chart, d: Draw) -> Ask:
    which = d.pick(("highest", "lowest"))
    name = d.pick(tuple(chart.series))
    values = chart.series[name]
    best = max(values) if which == "highest" else min(values)
    said = chart.labels[values.index(best)]
    steps = [f"{label} is {value}" for label, value in zip(chart.labels, values, strict=True)]
    steps.append(f"the {which} is {said}")
    what = "bar" if d.tier < 2 else "value"
    phrasings: tuple[str, ...] = ("which {what} is the {which}?", "name the {which} {what}", "what {what} is {which}?")
    choices: tuple[str, ...] = NAMES if d.tier == 0 else LABELS.get(d.tier, chart.labels)
    if name:
        phrasings = ("in which year is {name} {which}?", "name the year in which {name} is {which}")
    return d.ask(
        "chart_year" if name else "chart_extreme",
        phrasings, said, steps, choices=choices, work=_shown(chart) + 2 * d.tier, what=what, which=which, name=name,
    )  # fmt: skip


def ask_value(chart: Chart, d: Draw) -> Ask:
    name, place = d.pick(tuple(chart.series)), d.between(0, len(chart.labels) - 1)
    label, value = chart.labels[place], chart.series[name][place]
    about = f"{name} in {label}" if name else f"the {label} bar" if d.tier < 2 else label
    phrasings = ("how much is {about}?", "give the value of {about}", "read the value of {about}")
    return d.ask(
        "chart_value",
        phrasings,
        value,
        [f"{about} reaches {value}"],
        choices=LEVELS[d.tier],
        work=_shown(chart) + 2 * d.tier,
        about=about,
    )


def ask_difference(chart: Chart, d: Draw) -> Ask:
    """Between two places of one series. Of n levels, two different ones are neighbours with probability 2 / n, and
    farther apart less often."""
    name = d.pick(tuple(chart.series))
    values = chart.series[name]
    a, b = d.some(range(len(values)), 2)
    low, high = sorted((a, b), key=values.__getitem__)
    said = values[high] - values[low]
    steps = [f"{chart.labels[i]} is {values[i]}" for i in (high, low)] + [f"{values[high]} - {values[low]} = {said}"]
    of = f" of {name}" if name else ""
    phrasings = ("what is the difference{of} between {a} and {b}?", "how far apart are {a} and {b}{of}?")
    return d.ask(
        "chart_difference",
        phrasings, said, steps, chance=2 / len(LEVELS[d.tier]), work=_shown(chart) + 2 * d.tier + 3,
        a=chart.labels[a], b=chart.labels[b], of=of,
    )  # fmt: skip


CHART = Domain(
    "chart",
    (
        Kind("bars", draw_bars, (ask_extreme, ask_value, ask_value), (0,)),
        Kind("labelled", draw_labelled, (ask_extreme, ask_value), (1,)),
        Kind("axes", draw_labelled, (ask_extreme, ask_value, ask_difference), (2,)),
        Kind("series", draw_series, (ask_extreme, ask_value, ask_difference), (3,)),
    ),
)

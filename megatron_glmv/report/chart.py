"""Line charts as inline SVG, drawn here and coloured by the page's style sheet.

No plotting library: a page stays small (plotly's script alone is 4.6 MB), its text can be searched and copied, and one
style sheet serves light, dark and print. `assets/page.js` reads the numbers under the pointer from the chart's data.

Letters: x, y are data coordinates; u, v are the drawing's, v downward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_glmv.report.html import Markup, tag
from megatron_glmv.report.record import Points

WIDTH, HEIGHT = 400.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 18.0, 10.0, 38.0
MAX_POINTS = 600
"""Points of a drawn line, about the pixels in its width on a screen."""
COLOURS = 8
"""Line colours in the style sheet; more lines than that start again."""
SMOOTH_FROM = 60
"""Points from which a noisy line is drawn faint, with its smoothed course over it."""


@dataclass(frozen=True)
class Line:
    label: str
    points: Points
    colour: int
    """Index into the style sheet's colours."""
    marks: bool = False
    """Draw a dot at each point, for sparse values."""
    smooth: bool = False


def line_chart(
    lines: Sequence[Line], y_label: str, *, log: bool | None = None, x_label: str = "step", cut: bool = False
) -> Markup | None:
    """The chart with its legend; None without a point.

    log None: where the values are positive and span a factor of 50. cut: the axis ends where one value in a hundred
    lies outside, and lines run along its edge there, so that one slow step does not flatten all others.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    values = [y for line in lines for _, y in line.points]
    if cut:
        values = sorted(values)[len(values) // 200 : len(values) - len(values) // 200]
    if log is None:
        log = min(values) > 0 and max(values) / min(values) > 50
    x_axis = Axis.fit([x for line in lines for x, _ in line.points], LEFT, WIDTH - RIGHT)
    y_axis = Axis.fit(values, HEIGHT - BOTTOM, TOP, log=log, pad=True)
    drawn = [_draw(line, x_axis, y_axis) for line in lines]
    frame = [*_horizontal(x_axis, x_label), *_vertical(y_axis)]
    svg = tag(
        "svg",
        *frame,
        *drawn,
        tag("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, visibility="hidden"),
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        role="img",
        aria_label=f"{y_label} by {x_label}",
    )
    legend = [
        tag("span", tag("i", class_=f"key c{line.colour % COLOURS}"), line.label)
        for line in lines
        if line.label and len(lines) > 1
    ]
    data = {
        "x": [x_axis.low, x_axis.high, LEFT, WIDTH - RIGHT],
        "lines": [[line.label, line.colour, thin(line.points)] for line in lines],
    }
    return tag(
        "figure",
        tag("figcaption", y_label, tag("small", " (log)") if log else None, tag("span", *legend, class_="legend")),
        svg,
        class_="chart",
        data_chart=json.dumps(data, separators=(",", ":")),
    )


@dataclass(frozen=True)
class Axis:
    """Maps low..high to start..end; values outside lie on the edge. Where `log`, low and high are exponents of ten."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def fit(cls, values: Sequence[float], start: float, end: float, *, log: bool = False, pad: bool = False) -> Axis:
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12 * max(1.0, abs(high)):
            margin = abs(high) * 0.1 or 1.0
            low, high = low - margin, high + margin
        elif pad:
            margin = (high - low) * 0.05
            low = low if log is False and 0 <= low < margin else low - margin
            high += margin
        return cls(low, high, start, end, log)

    def __call__(self, value: float) -> float:
        place = math.log10(max(value, 10.0**self.low)) if self.log else value
        place = min(max(place, self.low), self.high)
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the axis."""
        if self.log:
            return self._log_ticks(count)
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        for multiples in ((1,), (1, 3), (1, 2, 5)):
            made = [m * 10.0**p for p in powers for m in multiples]
            inside = [value for value in made if self.low <= math.log10(value) <= self.high]
            if len(inside) >= 3 or multiples == (1, 2, 5):
                return inside[:: max(1, round(len(inside) / (2 * count)))]
        return []


def thin(points: Points, most: int = MAX_POINTS) -> list[tuple[int, float]]:
    """At most `most` points, rounded to four digits: the mean of each stretch at the step in its middle."""
    if len(points) <= most:
        return [(x, _four(y)) for x, y in points]
    made = []
    for k in range(most):
        part = points[k * len(points) // most : (k + 1) * len(points) // most]
        made.append((part[len(part) // 2][0], _four(math.fsum(y for _, y in part) / len(part))))
    return made


def smoothed(points: Points) -> Points:
    """A centred moving average over a thirtieth of the line, narrower at its ends, so that it does not lag."""
    half = max(1, len(points) // 60)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    made = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        made.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return made


def short(value: float) -> str:
    """A tick's label: 25k, 0.001, 3e-05."""
    if value == 0:
        return "0"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")


def _four(value: float) -> float:
    return float(f"{value:.4g}")


def _path(points: Points, x_axis: Axis, y_axis: Axis, class_: str) -> Markup:
    places = [f"{x_axis(x):.1f} {y_axis(y):.1f}" for x, y in points]
    return tag("path", d="M" + "L".join(places), class_=class_)


def _draw(line: Line, x_axis: Axis, y_axis: Axis) -> Markup:
    noisy = line.smooth and len(line.points) >= SMOOTH_FROM
    parts = [_path(thin(line.points), x_axis, y_axis, "line faint" if noisy else "line")]
    if noisy:
        parts.append(_path(thin(smoothed(line.points)), x_axis, y_axis, "line"))
    if line.marks or len(line.points) == 1:
        parts += [tag("circle", cx=x_axis(x), cy=y_axis(y), r=2.6, class_="dot") for x, y in thin(line.points, 120)]
    return tag("g", *parts, class_=f"c{line.colour % COLOURS}")


def _horizontal(axis: Axis, label: str) -> list[Markup]:
    base = HEIGHT - BOTTOM
    ticks = [value for value in axis.ticks(5) if value == int(value)]
    parts = [tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis")]
    parts += [tag("text", short(value), x=axis(value), y=base + 16, class_="tick mid") for value in ticks]
    return [*parts, tag("text", label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 5, class_="tick mid name")]


def _vertical(axis: Axis) -> list[Markup]:
    parts = []
    for value in axis.ticks(5):
        v = axis(value)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=v, y2=v, class_="grid"))
        parts.append(tag("text", short(value), x=LEFT - 7, y=v + 4, class_="tick end"))
    return parts

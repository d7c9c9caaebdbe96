"""A bar chart: which bar is the highest or lowest, and how high the bar of a colour is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_glmv.data.synthetic import canvas
from megatron_glmv.data.synthetic.canvas import CELL, COLOURS, SIDE, Pixels
from megatron_glmv.data.synthetic.task import HARD, MEDIUM, Ask, Task, about, pick

BARS, LEVELS = 4, 5
LEVEL_HEIGHT, BAR_WIDTH, BASE = 20, 20, 4
"""Pixels of one level, of a bar's width, and under the bars."""


@dataclass(frozen=True)
class Chart:
    """Bars of different colours and heights, from left to right. Heights are 1 .. LEVELS."""

    colours: tuple[str, ...]
    heights: tuple[int, ...]
    pixels: Pixels
    """[SIDE, SIDE, 3]."""

    @property
    def highest(self) -> str:
        return self.colours[self.heights.index(max(self.heights))]

    @property
    def lowest(self) -> str:
        return self.colours[self.heights.index(min(self.heights))]


def draw(rng: np.random.Generator) -> Chart:
    """Colours and heights are drawn without repeats, so that each bar has each colour and height equally often."""
    colours = tuple(str(name) for name in rng.permutation(list(COLOURS))[:BARS])
    heights = tuple(int(level) + 1 for level in rng.permutation(LEVELS)[:BARS])
    picture = canvas.blank()
    for place, (colour, level) in enumerate(zip(colours, heights, strict=True)):
        height = level * LEVEL_HEIGHT
        left = place * CELL + (CELL - BAR_WIDTH) // 2
        canvas.bar(picture, SIDE - BASE - height, left, height, BAR_WIDTH, COLOURS[colour])
    canvas.bar(picture, SIDE - BASE, 0, 2, SIDE, canvas.WHITE)
    return Chart(colours, heights, picture)


def _ask_value(chart: Chart, rng: np.random.Generator) -> Ask:
    place = int(rng.integers(BARS))
    phrasing = pick(rng, ("how high is the {} bar?", "count the {} bar"))
    levels = tuple(str(level + 1) for level in range(LEVELS))
    return Ask(phrasing.format(chart.colours[place]), str(chart.heights[place]), levels)


HIGHEST: Task[Chart] = Task(
    "chart_highest", MEDIUM, about(("which bar is the highest?", "name the highest bar"), tuple(COLOURS), "highest")
)
LOWEST: Task[Chart] = Task(
    "chart_lowest", MEDIUM, about(("which bar is the lowest?", "name the lowest bar"), tuple(COLOURS), "lowest")
)
VALUE: Task[Chart] = Task("chart_value", HARD, _ask_value)

"""Every family of scenes and every task, by name."""

from __future__ import annotations

from typing import Any

from megatron_glmv.data.synthetic import chart, clip, cycle, lights, still
from megatron_glmv.data.synthetic.category import CATEGORY
from megatron_glmv.data.synthetic.colour import COLOUR, VIDEO_COLOUR
from megatron_glmv.data.synthetic.count import COUNT
from megatron_glmv.data.synthetic.digit import DIGIT
from megatron_glmv.data.synthetic.direction import DIRECTION
from megatron_glmv.data.synthetic.family import TEXT, Family
from megatron_glmv.data.synthetic.order import CYCLE_FIRST, CYCLE_NEXT, LIGHT_FIRST, LIGHT_LAST, ORDER
from megatron_glmv.data.synthetic.position import POSITION, VIDEO_END, VIDEO_START
from megatron_glmv.data.synthetic.recall import RECALL
from megatron_glmv.data.synthetic.shape import SHAPE, VIDEO_SHAPE
from megatron_glmv.data.synthetic.sums import SUMS
from megatron_glmv.data.synthetic.task import Task
from megatron_glmv.data.types import IMAGE, VIDEO

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("still", IMAGE, still.draw, (COLOUR, SHAPE, POSITION, COUNT, DIGIT)),
        Family("chart", IMAGE, chart.draw, (chart.HIGHEST, chart.LOWEST, chart.VALUE, chart.VALUE)),
        Family("clip", VIDEO, clip.draw, (VIDEO_COLOUR, VIDEO_SHAPE, VIDEO_START, VIDEO_END, DIRECTION)),
        Family("lights", VIDEO, lights.draw, (LIGHT_FIRST, LIGHT_LAST, ORDER, ORDER)),
        Family("cycle", VIDEO, cycle.draw, (CYCLE_FIRST, CYCLE_NEXT, CYCLE_NEXT)),
        Family("text", TEXT, lambda rng: None, (CATEGORY, CATEGORY, RECALL, RECALL, SUMS, SUMS)),
    )
}

TASKS: dict[str, Task[Any]] = {task.name: task for family in FAMILIES.values() for task in family.tasks}

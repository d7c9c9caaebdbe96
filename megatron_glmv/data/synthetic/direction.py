"""Which way the object of a video moves; `clip` says why no single frame can tell."""

from __future__ import annotations

from megatron_glmv.data.synthetic.clip import Clip
from megatron_glmv.data.synthetic.grid import DIRECTIONS
from megatron_glmv.data.synthetic.task import MEDIUM, Task, about

DIRECTION: Task[Clip] = Task(
    "direction",
    MEDIUM,
    about(("which way does it move?", "name the way", "which way?"), tuple(DIRECTIONS), "direction"),
)

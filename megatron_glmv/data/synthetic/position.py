"""Where the object is: in a picture, and at the start and the end of a video."""

from __future__ import annotations

from megatron_glmv.data.synthetic.clip import Clip
from megatron_glmv.data.synthetic.grid import CORNERS, PLACES
from megatron_glmv.data.synthetic.still import Still
from megatron_glmv.data.synthetic.task import EASY, MEDIUM, Task, about

POSITION: Task[Still] = Task(
    "position", EASY, about(("where is it?", "name the place", "which place?"), PLACES, "place")
)
VIDEO_START: Task[Clip] = Task(
    "video_start", MEDIUM, about(("where is it first?", "where is it at the start?"), CORNERS, "start")
)
VIDEO_END: Task[Clip] = Task(
    "video_end", MEDIUM, about(("where is it last?", "where is it at the end?"), CORNERS, "end")
)

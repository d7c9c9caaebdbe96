"""What shape the object has."""

from __future__ import annotations

from megatron_glmv.data.synthetic.canvas import SHAPES
from megatron_glmv.data.synthetic.clip import Clip
from megatron_glmv.data.synthetic.still import Still
from megatron_glmv.data.synthetic.task import MEDIUM, Task, about

_ask = about(("what shape is it?", "name the shape", "which shape?"), SHAPES, "shape")

SHAPE: Task[Still] = Task("shape", MEDIUM, _ask)
VIDEO_SHAPE: Task[Clip] = Task("video_shape", MEDIUM, _ask)

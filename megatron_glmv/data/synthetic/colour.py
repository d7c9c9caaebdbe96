"""What colour the object has."""

from __future__ import annotations

from megatron_glmv.data.synthetic.canvas import COLOURS
from megatron_glmv.data.synthetic.clip import Clip
from megatron_glmv.data.synthetic.still import Still
from megatron_glmv.data.synthetic.task import EASY, Task, about

_ask = about(("what colour is it?", "name the colour", "which colour?"), tuple(COLOURS), "colour")

COLOUR: Task[Still] = Task("colour", EASY, _ask)
VIDEO_COLOUR: Task[Clip] = Task("video_colour", EASY, _ask)

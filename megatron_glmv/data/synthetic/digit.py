"""Which digit is written in the picture."""

from __future__ import annotations

from megatron_glmv.data.synthetic.canvas import DIGITS
from megatron_glmv.data.synthetic.still import Still
from megatron_glmv.data.synthetic.task import MEDIUM, Task, about

DIGIT: Task[Still] = Task(
    "digit", MEDIUM, about(("which digit is it?", "read the digit", "name the digit"), DIGITS, "digit")
)

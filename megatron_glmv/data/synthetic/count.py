"""How many tally marks there are."""

from __future__ import annotations

from megatron_glmv.data.synthetic.still import MARKS, Still
from megatron_glmv.data.synthetic.task import MEDIUM, Task, about

_CHOICES = tuple(str(n) for n in range(1, MARKS + 1))

COUNT: Task[Still] = Task(
    "count", MEDIUM, about(("how many marks?", "count the marks", "how many marks are there?"), _CHOICES, "count")
)

"""What a part of the report is. A new part is one file in `sections/` and one entry in `sections/__init__.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from megatron_glmv.report.html import Markup
from megatron_glmv.report.record import RunRecord


class Section(Protocol):
    """A part of the page with a heading of its own. It gets all runs and shows them side by side or over each other."""

    title: str
    anchor: str
    """Name in the page's address, unique."""

    def render(self, runs: Sequence[RunRecord]) -> Markup | None:
        """The body under the heading.

        None leaves the section out: for what runs of this stage never have. What they should have is said to be absent
        with `html.absent`.
        """
        ...

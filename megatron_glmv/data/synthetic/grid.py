"""Places and directions, and how they are called. Every name is one word, so that an answer is one token."""

from __future__ import annotations

PLACES = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")
"""The 3 x 3 grid, row by row from the top left."""
COLUMNS = 3
CORNERS = ("northwest", "northeast", "southwest", "southeast")
"""The quarters of a picture, row by row."""

DIRECTIONS: dict[str, tuple[int, int]] = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
"""Direction -> step (rows, columns)."""


def row_and_column(place: str) -> tuple[int, int]:
    return divmod(PLACES.index(place), COLUMNS)

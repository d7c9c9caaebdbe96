"""Histograms of positive counts on a logarithmic axis, for the terminal and as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

BINS_A_DOUBLING = 2
BARS = "▏▎▍▌▋▊▉█"
PANEL, MARGIN, ROW = 720, 12, 18


def bins(values: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(edges [k + 1], counts [k]) in steps of half a doubling, over the values above 0."""
    found = values[values > 0]
    if not len(found):
        return np.array([1.0, 2.0]), np.zeros(1, dtype=np.int64)
    first = np.floor(np.log2(found.min()) * BINS_A_DOUBLING)
    last = np.floor(np.log2(found.max()) * BINS_A_DOUBLING) + 1
    edges = 2 ** (np.arange(first, last + 1) / BINS_A_DOUBLING)
    return edges, np.histogram(found, edges)[0].astype(np.int64)


def as_text(title: str, values: NDArray[np.int64], width: int = 48) -> list[str]:
    """Lines of a bar chart in characters."""
    edges, counts = bins(values)
    lines = [title]
    for low, count in zip(edges, counts.tolist(), strict=False):
        eighths = round(count / max(int(counts.max()), 1) * width * 8)
        bar = "█" * (eighths // 8) + (BARS[eighths % 8 - 1] if eighths % 8 else "")
        lines.append(f"{int(np.ceil(low)):>9,} {bar} {count or ''}".rstrip())
    return lines


def as_png(path: Path, panels: Mapping[str, NDArray[np.int64]]) -> None:
    """One panel below the other."""
    found = {title: bins(values) for title, values in panels.items()}
    height = MARGIN + sum(ROW * (len(counts) + 2) for _, counts in found.values())
    image = Image.new("RGB", (PANEL, height), "white")
    draw = ImageDraw.Draw(image)
    y = MARGIN
    for title, (edges, counts) in found.items():
        draw.text((MARGIN, y), title, fill="black")
        y += ROW
        for low, count in zip(edges, counts.tolist(), strict=False):
            length = round(count / max(int(counts.max()), 1) * (PANEL - 190))
            draw.text((MARGIN, y), f"{int(np.ceil(low)):>9,}", fill="#444")
            draw.rectangle((90, y + 1, 90 + length, y + ROW - 4), fill="#3b6ea5")
            draw.text((98 + length, y), str(count), fill="#444")
            y += ROW
        y += ROW
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")

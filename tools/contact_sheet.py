"""One picture of the procedural domains: a row a domain, a column a tier; of videos and documents the first frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from megatron_glmv.data.synthetic.domains.drawing import font
from megatron_glmv.data.synthetic.domains.problem import TIERS, Problem, problem
from megatron_glmv.data.synthetic.domains.registry import DOMAINS
from megatron_glmv.data.synthetic.seeds import TRAIN

LABEL = 14
"""Pixels of the line under each picture."""


def tile(item: Problem, side: int) -> Image.Image:
    """The media of an item in a square of `side` pixels, its question and answer below."""
    sheet = Image.new("RGB", (side, side + LABEL), (255, 255, 255))
    frames = [f for m in item.media for f in ([m.pixels] if m.pixels.ndim == 3 else m.pixels)][:4]
    across = 1 if len(frames) == 1 else 2
    for place, frame in enumerate(frames):
        small = Image.fromarray(frame).resize((side // across - 1, side // across - 1), Image.Resampling.LANCZOS)
        sheet.paste(small, (place % across * side // across, place // across * side // across))
    ask, draw = item.asks[0], ImageDraw.Draw(sheet)
    face = font("DejaVuSans", 9)
    if not frames:
        for line in range(6):
            draw.text((4, 8 + 14 * line), ask.question[line * 20 : line * 20 + 20], (0, 0, 0), face)
    said = ask.answer if len(ask.answer) < 20 else ask.answer[:18] + ".."
    draw.text((2, side + 1), f"{ask.task}: {said}"[:32], (0, 0, 0), font("DejaVuSans", 8))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    side, columns = options.side, 2 * len(TIERS)
    rows = -(-len(DOMAINS) // 2)
    page = Image.new("RGB", (columns * (side + 4), rows * (side + LABEL + 4)), (255, 255, 255))
    for place, domain in enumerate(DOMAINS.values()):
        for tier in TIERS:
            column = place % 2 * len(TIERS) + tier
            item = problem(domain, tier, TRAIN, options.seed, 1)
            page.paste(tile(item, side), (column * (side + 4), place // 2 * (side + LABEL + 4)))
    page.quantize(96, method=Image.Quantize.MEDIANCUT).save(options.out, optimize=True)
    print(f"{options.out}: {page.width} x {page.height}, {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

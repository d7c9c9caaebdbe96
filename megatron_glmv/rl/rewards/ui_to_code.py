"""Code of a page that was shown: rendered by a browser, and compared with the reference as it looks.

The paper rewards UI coding by what a visual judge says; released code for it there is none. Here rules compare what is
rendered (likeness.py: Design2Code's parts and a picture's), continuous in [0, 1]; a page that looks the same is 1,
whatever its code. Scripts do not run, and nothing is fetched: a page has to stand by itself.

`answer`: HTML, or with `extra` screenshot (the path of a PNG, of the browser's width) whatever: then there is only the
picture to compare. A code fence around the response is taken off.
"""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_glmv.rl.rewards.types import Shoot, Verdict, Verifier, wrong
from megatron_glmv.rl.rewards.values import unfence

if TYPE_CHECKING:
    from megatron_glmv.rl.rewards.browser import Screen


def look(final: str, answer: Any, extra: Mapping[str, Any], shoot: Shoot) -> Verdict:
    """`shoot` renders: the response for every item, the reference once."""
    from megatron_glmv.rl.rewards.browser import Screen  # arrays and pictures: the pool's processes do without
    from megatron_glmv.rl.rewards.likeness import parts

    html = unfence(final).strip()
    if "<" not in html:
        return wrong("no HTML")
    path = str(extra.get("screenshot") or "")
    meant = _read(path) if path else shoot(str(answer), True)
    said = shoot(html, False)
    found = parts(Screen(said.pixels, (), b""), meant) if path else parts(said, meant)
    share = statistics.fmean(found.values())
    return Verdict(share, ", ".join(f"{name} {value:.2f}" for name, value in found.items()), parts=found)


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    return wrong("a page is judged by how a browser shows it, and none was given")


def _read(path: str) -> Screen:
    import numpy as np
    from PIL import Image

    from megatron_glmv.rl.rewards.browser import MOST_HEIGHT, WIDTH, Screen

    data = Path(path).read_bytes()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.width != WIDTH or image.height > MOST_HEIGHT:
            raise ValueError(f"a screenshot has to be {WIDTH} pixels wide and at most {MOST_HEIGHT} high")
        return Screen(np.asarray(image.convert("RGB")), (), data)


VERIFIER = Verifier("ui_to_code", check, look=look, seconds=20.0)

"""How alike two rendered pages look, in parts of [0, 1]. n, m blocks of text of the two; H, W pixels.

Design2Code's low-level parts (arXiv 2403.03163, 3.2), over blocks that are matched by their texts (assignment of
greatest similarity, pairs below 0.5 dropped):

    block     area of matched blocks / area of all blocks, of both pages
    text      Dice coefficient of the texts, over pairs of characters; mean of the matched
    position  1 - max(|dx|, |dy|) of the centres, in shares of the page's width and height; mean
    colour    1 - CIEDE2000 / 100 of the text colours, at least 0; mean

Its high-level part is the similarity of CLIP embeddings. No such model is asked here; in its place stands

    picture   SSIM (Wang et al. 2004; 7 x 7 means) of both pages in grey, at most 256 pixels wide, scaled so that an
              empty page of the reference's commonest colour has 0

which is ours, and not to be compared with results of the benchmark. The score is the mean of all five.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from megatron_glmv.rl.rewards.browser import HEIGHT, WIDTH, Block, Screen

Floats = NDArray[np.float64]
LEAST, GREY_WIDTH, SIDE = 0.5, 256, 7


def parts(said: Screen, meant: Screen) -> dict[str, float]:
    found = _text_parts(said, meant) if said.blocks or meant.blocks else {}
    return {**found, "picture": picture(said.pixels, meant.pixels)}


def _text_parts(said: Screen, meant: Screen) -> dict[str, float]:
    pairs = matched(said.blocks, meant.blocks)
    if not pairs:
        return dict.fromkeys(("block", "text", "position", "colour"), 0.0)
    every = sum(block.area for block in (*said.blocks, *meant.blocks))
    sizes = [max(screen.pixels.shape[0], HEIGHT) for screen in (said, meant)]
    texts, places, colours, area = 0.0, 0.0, 0.0, 0.0
    for a, b in pairs:
        area += a.area + b.area
        texts += dice(_pairs(a.text), _pairs(b.text))
        across = abs(a.box[0] + a.box[2] - b.box[0] - b.box[2]) / 2 / WIDTH
        down = abs((a.box[1] + a.box[3]) / 2 / sizes[0] - (b.box[1] + b.box[3]) / 2 / sizes[1])
        places += 1 - min(1.0, max(across, down))
        colours += max(0.0, 1 - ciede2000(lab(a.colour), lab(b.colour)) / 100)
    n = len(pairs)
    return {"block": area / every, "text": texts / n, "position": places / n, "colour": colours / n}


def matched(said: Sequence[Block], meant: Sequence[Block]) -> list[tuple[Block, Block]]:
    """Pairs of blocks, by the assignment that makes their texts most alike; of equal texts the nearer ones."""
    if not said or not meant:
        return []
    mine, theirs = [_pairs(block.text) for block in said], [_pairs(block.text) for block in meant]
    alike = np.array([[dice(a, b) for b in theirs] for a in mine])
    centres = [np.array([[b.box[0] + b.box[2], b.box[1] + b.box[3]] for b in blocks]) for blocks in (said, meant)]
    far = np.abs(centres[0][:, None] - centres[1][None]).max(axis=2)
    cost = -alike + 1e-3 * far / (1 + far.max())
    turned = len(said) > len(meant)
    rows = assignment(cost.T if turned else cost)
    places = [(j, i) if turned else (i, j) for i, j in enumerate(rows)]
    return [(said[i], meant[j]) for i, j in places if alike[i, j] >= LEAST]


def assignment(cost: Floats) -> list[int]:
    """[n, m] with n <= m -> the column of each row, of least total cost (Jonker and Volgenant 1987, shortest
    augmenting paths; n^2 steps on vectors of m)."""
    n, m = cost.shape
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    row_of = np.zeros(m + 1, dtype=np.int64)  # 0: free; columns and rows count from 1
    for row in range(1, n + 1):
        row_of[0], column = row, 0
        least, before = np.full(m + 1, np.inf), np.zeros(m + 1, dtype=np.int64)
        used = np.zeros(m + 1, dtype=np.bool_)
        while True:
            used[column] = True
            i = row_of[column]
            reduced = cost[i - 1] - u[i] - v[1:]
            better = ~used[1:] & (reduced < least[1:])
            least[1:][better], before[1:][better] = reduced[better], column
            free = np.where(used[1:], np.inf, least[1:])
            column = int(free.argmin()) + 1
            step = free[column - 1]
            u[row_of[used]] += step
            v[used] -= step
            least[~used] -= step
            if row_of[column] == 0:
                break
        while column:
            row_of[column], column = row_of[before[column]], int(before[column])
    found = [0] * n
    for column in range(1, m + 1):
        if row_of[column]:
            found[row_of[column] - 1] = column - 1
    return found


def _pairs(text: str) -> Counter[str]:
    """Neighbouring characters, blanks and case aside; of a single character itself."""
    plain = "".join(text.casefold().split())
    return Counter(plain[i : i + 2] for i in range(max(1, len(plain) - 1)))


def dice(a: Counter[str], b: Counter[str]) -> float:
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 1.0


def lab(rgb: tuple[int, int, int]) -> Floats:
    """CIE L*a*b* of an sRGB colour, white point D65."""
    share = np.array(rgb) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = matrix @ linear / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def ciede2000(one: Floats, other: Floats) -> float:
    """Colour difference CIEDE2000 (Sharma, Wu and Dalal 2005), all weights 1."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    turn, about = h2 - h1, (h1 + h2) / 2
    if c1 * c2 == 0:
        turn, about = 0.0, h1 + h2
    elif abs(h1 - h2) > 180:
        turn += 360 if h2 <= h1 else -360
        about += 180 if h1 + h2 < 360 else -180
    dl, dc, dh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn) / 2)
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(np.radians(about - 30)) + 0.24 * np.cos(np.radians(2 * about))
    t += 0.32 * np.cos(np.radians(3 * about + 6)) - 0.2 * np.cos(np.radians(4 * about - 63))
    sl = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    sc, sh = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotated = np.sin(np.radians(60 * np.exp(-(((about - 275) / 25) ** 2))))
    rt = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * rotated
    return float(np.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rt * dc / sc * dh / sh))


def picture(said: NDArray[np.uint8], meant: NDArray[np.uint8]) -> float:
    """[H, W, 3] each. A shorter page is continued in black: what is missing is not white."""
    height = max(said.shape[0], meant.shape[0])
    values, counts = np.unique(meant.reshape(-1, 3), axis=0, return_counts=True)
    empty = np.broadcast_to(values[counts.argmax()], meant.shape).astype(np.uint8)
    a, b, none = (_grey(one, height) for one in (said, meant, empty))
    alike, floor = ssim(a, b), ssim(none, b)
    return max(0.0, alike if floor > 0.999 else (alike - floor) / (1 - floor))


def _grey(pixels: NDArray[np.uint8], height: int) -> Floats:
    whole = np.zeros((height, *pixels.shape[1:]), dtype=np.uint8)
    whole[: pixels.shape[0]] = pixels
    size = (min(GREY_WIDTH, whole.shape[1]), max(SIDE, round(height * min(1.0, GREY_WIDTH / whole.shape[1]))))
    return np.asarray(Image.fromarray(whole).convert("L").resize(size, Image.Resampling.BOX), dtype=np.float64)


def ssim(a: Floats, b: Floats) -> float:
    """[H, W] each, 0 to 255 -> mean structural similarity."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = _means(a), _means(b)
    va, vb, vab = _means(a * a) - ma * ma, _means(b * b) - mb * mb, _means(a * b) - ma * mb
    return float(np.mean((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))


def _means(of: Floats) -> Floats:
    """Of every SIDE x SIDE window inside."""
    total = np.pad(of, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    inner = total[SIDE:, SIDE:] - total[:-SIDE, SIDE:] - total[SIDE:, :-SIDE] + total[:-SIDE, :-SIDE]
    return np.asarray(inner / SIDE**2)

"""Text in images: the whole of a sign, one line of several, or what stands beside a word on a receipt.

Words are made of syllables, so that none can be known; a line is asked for by its place or by its neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

DIGITS = "0123456789"
STARTS, VOWELS, ENDS = "bdfgklmnprstv", "aeiou", "lmnrst"
ITEMS = ("bread", "milk", "apples", "rice", "soap", "tea", "paper", "cheese", "fish", "salt", "sugar", "eggs")
PLACES = ("first", "second", "third", "fourth", "fifth", "sixth")
SIGNS = ("no", "bus", "exit", "hotel", "museum", "parking")
"""Words of signs: known ones of different lengths."""
LINES = {1: 1, 2: 4, 3: 6}
ROWS = {2: 5, 3: 10}


@dataclass(frozen=True)
class Sign:
    media: tuple[Medium, ...]
    lines: tuple[str, ...]
    """As they stand, from top to bottom; of a receipt `item price`."""


def word(d: Draw, syllables: int) -> str:
    return "".join(d.pick(STARTS) + d.pick(VOWELS) for _ in range(syllables)) + d.pick(ENDS)


def draw_code(d: Draw) -> Sign:
    """Tier 0: one or two big digits."""
    text = "".join(d.pick(DIGITS) for _ in range(d.between(1, 2)))
    sheet = Sheet(d.side, d.side, d.style)
    for place, letter in enumerate(text):
        x = d.side * (0.5 if len(text) == 1 else 0.25 + 0.5 * place)
        sheet.text((x, d.side / 2), letter, d.side * 0.6)
    return Sign((Medium(IMAGE, sheet.pixels()),), (text,))


def draw_sign(d: Draw) -> Sign:
    """Tier 0: one of six words, all equally likely, in letters of one size."""
    text, sheet = d.pick(SIGNS), Sheet(d.side, d.side, d.style)
    sheet.text((d.side / 2, d.side / 2), text, sheet.fit(SIGNS[-1], d.side * 0.92, d.side * 0.3))
    return Sign((Medium(IMAGE, sheet.pixels()),), (text,))


def draw_lines(d: Draw) -> Sign:
    count = LINES[d.tier]
    lines = [" ".join(word(d, d.between(1, 2)) for _ in range(d.tier if d.tier > 1 else 1)) for _ in range(count)]
    sheet = Sheet(d.side, d.side, d.style)
    pitch = d.side / (count + 1)
    for number, line in enumerate(lines):
        size = sheet.fit(
            line, d.side * 0.9, min(pitch * 0.8, d.side * d.rng.uniform(0.1, 0.2) if count > 1 else d.side * 0.3)
        )
        sheet.text((d.side / 2, pitch * (number + 1)), line, size)
    if d.tier == 3:
        _noise(sheet, d)
    return Sign((Medium(IMAGE, sheet.pixels()),), tuple(lines))


def draw_receipt(d: Draw) -> Sign:
    count = ROWS[d.tier]
    lines = [f"{item} {d.between(0, 19)}.{d.between(0, 9)}{d.pick('05')}" for item in d.some(ITEMS, count)]
    sheet = Sheet(d.side, d.side, d.style)
    pitch = d.side / (count + 1)
    for number, line in enumerate(lines):
        item, price = line.split()
        at = pitch * (number + 1)
        sheet.text((d.side * 0.08, at), item, pitch * 0.62, anchor="lm")
        sheet.text((d.side * 0.92, at), price, pitch * 0.62, anchor="rm")
    if d.tier == 3:
        _noise(sheet, d)
    return Sign((Medium(IMAGE, sheet.pixels()),), tuple(lines))


def _noise(sheet: Sheet, d: Draw) -> None:
    """Thin lines across the text."""
    for _ in range(4):
        ends = [(0.0, d.rng.uniform(0, d.side)), (float(d.side), d.rng.uniform(0, d.side))]
        sheet.line(ends, width=max(1, d.side / 300))


def ask_all(sign: Sign, d: Draw) -> Ask:
    text = sign.lines[0]
    steps = [" ".join(text) if len(text) < 4 else f"it says {text}"]
    phrasings = ("what is written?", "read the text", "what does it say?", "give the text")
    chance = 1 / 20 if d.tier == 0 else 0.001  # one of ten digits in half the pictures; words are never repeated
    return d.ask("ocr_text", phrasings, text, steps, chance=chance, work=len(text))


def ask_sign(sign: Sign, d: Draw) -> Ask:
    (text,) = sign.lines
    phrasings = ("which word is written?", "read the word", "what does the sign say?", "name the word on the sign")
    return d.ask("ocr_sign", phrasings, text, [f"it says {text}"], choices=SIGNS, work=2)


def ask_line(sign: Sign, d: Draw) -> Ask:
    at = d.between(0, len(sign.lines) - 1)
    steps = [f"line {number + 1} says {line}" for number, line in enumerate(sign.lines[: at + 1])]
    phrasings = ("read the {place} line", "what does the {place} line say?", "give the text of the {place} line")
    return d.ask(
        "ocr_line", phrasings, sign.lines[at], steps, chance=0.001, work=sum(map(len, sign.lines)), place=PLACES[at]
    )


def ask_price(sign: Sign, d: Draw) -> Ask:
    item, price = d.pick(sign.lines).split()
    phrasings = ("what does {item} cost?", "read the price of {item}", "give the price of {item}")
    return d.ask(
        "ocr_price",
        phrasings,
        price,
        [f"beside {item} stands {price}"],
        chance=0.0025,
        work=sum(map(len, sign.lines)),
        item=item,
    )


OCR = Domain(
    "ocr",
    (
        Kind("sign", draw_sign, (ask_sign,), (0,)),
        Kind("code", draw_code, (ask_all,), (0,)),
        Kind("word", draw_lines, (ask_all,), (1,)),
        Kind("lines", draw_lines, (ask_line, ask_line), (2, 3)),
        Kind("receipt", draw_receipt, (ask_price, ask_price), (2, 3)),
    ),
)

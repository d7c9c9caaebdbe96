"""Small physics with units from a diagram: forces on a block, motion along a road, currents in a circuit.

The answer is drawn first, uniformly from a list, and the quantities that lead to it afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_glmv.data.synthetic.domains.drawing import Sheet
from megatron_glmv.data.synthetic.domains.problem import Ask, Domain, Draw, Kind, Medium
from megatron_glmv.data.types import IMAGE

FORCES = (range(1, 7), range(1, 10), range(1, 16), range(1, 9))
"""Net force in N; at tier 3 the acceleration in m/s^2."""
DISTANCES = {1: (6, 8, 10, 12, 15, 18, 20, 24), 2: (5, 10, 15, 20, 30, 40), 3: tuple(range(20, 50))}
"""In m; at tier 2 in km."""
CURRENTS = range(1, 7)


@dataclass(frozen=True)
class Setup:
    media: tuple[Medium, ...]
    kind: str
    numbers: tuple[int, ...]
    """The labelled quantities, in the order that the kind gives them."""
    answer: str


def _label(sheet: Sheet, at: tuple[float, float], text: str, size: float, width: float) -> None:
    sheet.text(at, text, sheet.fit(text, width, size))


def draw_forces(d: Draw) -> Setup:
    """Forces to the right and one to the left; `numbers` are those to the right, then the left, at tier 3 the mass."""
    net, mass = d.pick(FORCES[d.tier]), d.between(2, 6) if d.tier == 3 else 1
    left = d.between(1, 3 + 2 * d.tier)
    total = net * mass + left
    parts = (total,) if d.tier < 2 else (first := d.between(1, total - 1), total - first)
    sheet, s = Sheet(d.side, d.side, d.style), float(d.side)
    middle, block = s * 0.5, (s * 0.38, s * 0.36, s * 0.62, s * 0.64)
    sheet.box(block, outline=d.style.ink, width=s / 60)
    sheet.arrow((block[0], middle), (s * 0.08, middle))
    sheet.text((s * 0.2, middle - s * 0.13), f"{left} N", s * (0.16 if d.tier < 2 else 0.08))
    for number, part in enumerate(parts):
        y = middle if len(parts) == 1 else s * (0.42 + 0.16 * number)
        sheet.arrow((block[2], y), (s * 0.92, y))
        up = -s * 0.13 if len(parts) == 1 else s * (-0.07 if number == 0 else 0.07)
        _label(sheet, (s * 0.81, y + up), f"{part} N", s * (0.16 if d.tier < 2 else 0.08), s * 0.33)
    if d.tier == 3:
        sheet.text((middle, middle), f"{mass} kg", s * 0.07)
    numbers = (*parts, left, *((mass,) if d.tier == 3 else ()))
    return Setup((Medium(IMAGE, sheet.pixels()),), "forces", numbers, f"{net} m/s^2" if d.tier == 3 else f"{net} N")


def ask_force(setup: Setup, d: Draw) -> Ask:
    numbers = setup.numbers[:-1] if d.tier == 3 else setup.numbers
    *right, left = numbers
    steps = [f"{' + '.join(map(str, right))} = {sum(right)} N to the right"] if len(right) > 1 else []
    steps.append(f"{sum(right)} - {left} = {sum(right) - left} N")
    unit = "N"
    phrasings = ("what is the net force on the block?", "how large is the net force?", "give the net force")
    if d.tier == 3:
        unit, mass = "m/s^2", setup.numbers[-1]
        steps.append(f"{sum(right) - left} / {mass} = {(sum(right) - left) // mass} m/s^2")
        phrasings = ("what is the acceleration of the block?", "how fast does it speed up?", "give the acceleration")
    work = 3 * len(setup.numbers) + len(steps)
    choices = [f"{value} {unit}" for value in FORCES[d.tier]]
    return d.ask("physics_force", phrasings, setup.answer, steps, choices=choices, work=work)


def draw_motion(d: Draw) -> Setup:
    """A car on a road; `numbers` are pairs of speed and time: m/s and s, at tier 2 km/h and min."""
    answer = d.pick(DISTANCES[d.tier])
    legs: tuple[tuple[int, int], ...]
    if d.tier == 1:
        speed = d.pick([v for v in range(2, 11) if answer % v == 0 and 2 <= answer // v <= 10])
        legs = ((speed, answer // speed),)
    elif d.tier == 2:
        speed = d.pick([v for v in (20, 30, 40, 60, 80, 120) if answer * 60 % v == 0])
        legs = ((speed, answer * 60 // speed),)
    else:
        legs = d.pick(
            [
                ((a, s), (b, t))
                for a in range(2, 8)
                for s in range(2, 7)
                for b in range(2, 8)
                for t in range(2, 7)
                if a * s + b * t == answer and a != b
            ]
        )
    fast, long = ("km/h", "min") if d.tier == 2 else ("m/s", "s")
    sheet, s = Sheet(d.side, d.side, d.style), float(d.side)
    for number, (speed, time) in enumerate(legs):
        y = s * (0.55 if len(legs) == 1 else 0.3 + 0.45 * number)
        sheet.line([(s * 0.05, y + s * 0.12), (s * 0.95, y + s * 0.12)], width=s / 60)
        sheet.box((s * 0.08, y - s * 0.02, s * 0.3, y + s * 0.06), fill=d.style.ink)
        for x in (0.13, 0.25):
            sheet.ellipse((s * (x - 0.04), y + s * 0.04, s * (x + 0.04), y + s * 0.12), fill=d.style.ink)
        sheet.arrow((s * 0.34, y), (s * 0.62, y))
        _label(sheet, (s * 0.5, y - s * 0.14), f"{speed} {fast}", s * 0.15, s * 0.8)
        _label(sheet, (s * 0.8, y + s * 0.02), f"{time} {long}", s * 0.15, s * 0.3)
    numbers = tuple(value for leg in legs for value in leg)
    return Setup((Medium(IMAGE, sheet.pixels()),), "motion", numbers, f"{answer} {'km' if d.tier == 2 else 'm'}")


def ask_distance(setup: Setup, d: Draw) -> Ask:
    legs = list(zip(setup.numbers[::2], setup.numbers[1::2], strict=True))
    if d.tier == 2:
        ((speed, time),) = legs
        steps = [f"{speed} x {time} = {speed * time}", f"{speed * time} / 60 = {setup.answer}"]
    else:
        steps = [f"{speed} x {time} = {speed * time} m" for speed, time in legs]
        if len(legs) > 1:
            steps.append(f"{' + '.join(str(v * t) for v, t in legs)} = {setup.answer}")
    phrasings = ("how far does it go in all?", "what distance is covered?", "give the distance")
    unit = "km" if d.tier == 2 else "m"
    choices = [f"{value} {unit}" for value in DISTANCES[d.tier]]
    work = 3 * len(setup.numbers) + 2 * len(steps)
    return d.ask("physics_distance", phrasings, setup.answer, steps, choices=choices, work=work)


def draw_circuit(d: Draw) -> Setup:
    """A battery and resistors in series; `numbers` are the voltage and the resistances. At tier 3 two equal ones in
    parallel come behind the first."""
    current = d.pick(CURRENTS)
    if d.tier == 1:
        resistors: tuple[int, ...] = (d.between(1, 6),)
        whole = resistors[0]
    elif d.tier == 2:
        resistors = (d.between(1, 6), d.between(1, 6))
        whole = sum(resistors)
    else:
        pair = 2 * d.between(1, 5)
        resistors = (d.between(1, 6), pair, pair)
        whole = resistors[0] + pair // 2
    sheet, s = Sheet(d.side, d.side, d.style), float(d.side)
    left, right, top, bottom = s * 0.22, s * 0.78, s * 0.2, s * 0.8
    thin = s / 70
    sheet.line(
        [(left, s * 0.44), (left, top), (right, top), (right, bottom), (left, bottom), (left, s * 0.56)], width=thin
    )
    sheet.line([(left - s * 0.1, s * 0.44), (left + s * 0.1, s * 0.44)], width=thin)
    sheet.line([(left - s * 0.05, s * 0.56), (left + s * 0.05, s * 0.56)], width=2 * thin)
    size = s * (0.14 if d.tier == 1 else 0.08)
    _label(sheet, (s * 0.42 if d.tier == 1 else s * 0.38, s * 0.5), f"{current * whole} V", size, s * 0.32)
    slots = [(0.5, 0.2), (0.5, 0.8)] if d.tier == 2 else [(0.5, 0.2)]
    if d.tier == 3:
        sheet.line([(s * 0.6, bottom), (s * 0.6, s * 0.66), (s * 0.34, s * 0.66), (s * 0.34, bottom)], width=thin)
        slots += [(0.47, 0.8), (0.47, 0.66)]
    for (x, y), ohm in zip(slots, resistors, strict=True):
        high, wide = s * (0.1 if d.tier == 1 else 0.055), s * (0.22 if d.tier == 1 else 0.095)
        sheet.box((s * x - wide, s * y - high, s * x + wide, s * y + high), d.style.background, d.style.ink, thin)
        _label(sheet, (s * x, s * y), f"{ohm} Ω", size * 0.85, wide * 1.9)
    return Setup((Medium(IMAGE, sheet.pixels()),), "circuit", (current * whole, *resistors), f"{current} A")


def ask_current(setup: Setup, d: Draw) -> Ask:
    volts, *ohms = setup.numbers
    steps, whole = [], sum(ohms)
    if len(ohms) == 3:
        whole = ohms[0] + ohms[1] // 2
        steps = [f"the two in parallel are {ohms[1]} / 2 = {ohms[1] // 2} Ω", f"{ohms[0]} + {ohms[1] // 2} = {whole} Ω"]
    elif len(ohms) == 2:
        steps = [f"{ohms[0]} + {ohms[1]} = {whole} Ω"]
    steps.append(f"{volts} / {whole} = {volts // whole} A")
    phrasings = ("what current does the battery give?", "how large is the current?", "give the current of the battery")
    choices = [f"{value} A" for value in CURRENTS]
    work = 3 * len(setup.numbers) + 2 * len(steps)
    return d.ask("physics_current", phrasings, setup.answer, steps, choices=choices, work=work)


PHYSICS = Domain(
    "physics",
    (
        Kind("forces", draw_forces, (ask_force,)),
        Kind("motion", draw_motion, (ask_distance,), (1, 2, 3)),
        Kind("circuit", draw_circuit, (ask_current,), (1, 2, 3)),
    ),
)

"""A number with a unit: units of the SI and what physics and chemistry use beside them, by tables alone.

A quantity is (value in SI base units, dimension); a dimension is the exponents of m, kg, s, A, K, mol, cd.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_glmv.rl.rewards.numbers import parse_number, plain

MAX_CHARS = 128
Dimension = tuple[int, ...]
NONE: Dimension = (0,) * 7


def _dim(**powers: int) -> Dimension:
    return tuple(powers.get(base, 0) for base in ("m", "kg", "s", "A", "K", "mol", "cd"))


_ENERGY, _FORCE, _PRESSURE = _dim(kg=1, m=2, s=-2), _dim(kg=1, m=1, s=-2), _dim(kg=1, m=-1, s=-2)
_VOLT = _dim(kg=1, m=2, s=-3, A=-1)
_PREFIXED: dict[str, tuple[float, Dimension]] = {
    "m": (1, _dim(m=1)),
    "g": (1e-3, _dim(kg=1)),
    "s": (1, _dim(s=1)),
    "A": (1, _dim(A=1)),
    "K": (1, _dim(K=1)),
    "mol": (1, _dim(mol=1)),
    "cd": (1, _dim(cd=1)),
    "N": (1, _FORCE),
    "J": (1, _ENERGY),
    "W": (1, _dim(kg=1, m=2, s=-3)),
    "Pa": (1, _PRESSURE),
    "Hz": (1, _dim(s=-1)),
    "C": (1, _dim(A=1, s=1)),
    "V": (1, _VOLT),
    "Ω": (1, _dim(kg=1, m=2, s=-3, A=-2)),
    "ohm": (1, _dim(kg=1, m=2, s=-3, A=-2)),
    "F": (1, _dim(kg=-1, m=-2, s=4, A=2)),
    "T": (1, _dim(kg=1, s=-2, A=-1)),
    "Wb": (1, _dim(kg=1, m=2, s=-2, A=-1)),
    "H": (1, _dim(kg=1, m=2, s=-2, A=-2)),
    "L": (1e-3, _dim(m=3)),
    "l": (1e-3, _dim(m=3)),
    "M": (1e3, _dim(mol=1, m=-3)),
    "eV": (1.602176634e-19, _ENERGY),
    "cal": (4.184, _ENERGY),
    "bar": (1e5, _PRESSURE),
    "Bq": (1, _dim(s=-1)),
    "Sv": (1, _dim(m=2, s=-2)),
    "Gy": (1, _dim(m=2, s=-2)),
}
_BARE: dict[str, tuple[float, Dimension]] = {
    "min": (60, _dim(s=1)),
    "h": (3600, _dim(s=1)),
    "hr": (3600, _dim(s=1)),
    "d": (86400, _dim(s=1)),
    "day": (86400, _dim(s=1)),
    "year": (31557600, _dim(s=1)),
    "t": (1e3, _dim(kg=1)),
    "u": (1.66053906660e-27, _dim(kg=1)),
    "Å": (1e-10, _dim(m=1)),
    "in": (0.0254, _dim(m=1)),
    "ft": (0.3048, _dim(m=1)),
    "mi": (1609.344, _dim(m=1)),
    "mile": (1609.344, _dim(m=1)),
    "lb": (0.45359237, _dim(kg=1)),
    "atm": (101325, _PRESSURE),
    "mmHg": (133.322387415, _PRESSURE),
    "torr": (133.322368421, _PRESSURE),
    "Torr": (133.322368421, _PRESSURE),
    "rad": (1, NONE),
    "rev": (6.283185307179586, NONE),
    "°": (0.017453292519943295, NONE),
    "deg": (0.017453292519943295, NONE),
    "%": (1e-2, NONE),
    "ppm": (1e-6, NONE),
    "°C": (1, _dim(K=1)),
    "°F": (5 / 9, _dim(K=1)),
}
_WORDS = {
    "meter": "m", "metre": "m", "gram": "g", "kilogram": "kg", "second": "s", "sec": "s", "ampere": "A", "amp": "A",
    "kelvin": "K", "mole": "mol", "newton": "N", "joule": "J", "watt": "W", "pascal": "Pa", "hertz": "Hz",
    "coulomb": "C", "volt": "V", "tesla": "T", "liter": "L", "litre": "L", "minute": "min", "hour": "h",
    "degree": "°", "degrees": "°", "celsius": "°C", "kilometer": "km", "kilometre": "km", "centimeter": "cm",
    "centimetre": "cm", "millimeter": "mm", "kilojoule": "kJ", "milliliter": "mL", "radian": "rad",
}  # fmt: skip
_PREFIX = {
    "Y": 1e24, "Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "h": 1e2, "da": 1e1,
    "d": 1e-1, "c": 1e-2, "m": 1e-3, "µ": 1e-6, "u": 1e-6, "n": 1e-9, "p": 1e-12, "f": 1e-15, "a": 1e-18,
}  # fmt: skip
_OFFSETS = {"°C": 273.15, "°F": 459.67 * 5 / 9}
"""Added where such a unit stands alone: inside J/°C it is a difference."""
_SPLIT = re.compile(
    r"(?P<number>[+-]?\s?\d[\d.,]*(?:\s?(?:[eE]|[x×*·]\s?10\s?(?:\^|\*\*)?\s?)\{?[+-]?\d+\}?)?(?:\s?/\s?\d+)?)"
    r"(?P<unit>.*)",
    re.DOTALL,
)
_FACTOR = re.compile(r"(?P<name>[^\W\d_]+|[°%][CF]?)(?:\s*(?:\^|\*\*)?\s*\{?(?P<power>[+-]?\d)\}?)?")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@dataclass(frozen=True)
class Quantity:
    value: float
    """In SI base units; as written where there is no unit."""
    dimension: Dimension
    unit: str
    """As written; empty where there is none."""


def parse_quantity(text: str, unit: str = "") -> Quantity | None:
    """The number and unit that the whole text is. `unit` is taken where the text has none. None for anything else."""
    if len(text) > MAX_CHARS:
        return None
    split = _SPLIT.fullmatch(plain(_unwrap(text)))
    if split is None:
        return None
    number = parse_number(split["number"].strip())
    unit = split["unit"].strip() or _unwrap(unit).strip()
    if number is None:
        return None
    if not unit:
        return Quantity(number, NONE, "")
    measure = parse_unit(unit)
    if measure is None:
        return None
    factor, dimension = measure
    return Quantity(number * factor + _OFFSETS.get(_name(unit), 0.0), dimension, unit)


def parse_unit(text: str) -> tuple[float, Dimension] | None:
    """(factor to SI base units, dimension) of m/s^2, kg·m/s, J/(mol·K), J mol^-1 K^-1; None if it is none."""
    factor, powers, sign, group = 1.0, list(NONE), 1, False
    text = text.strip()
    place = 0
    while place < len(text):
        here = text[place]
        if here in " ·*⋅.":
            place += 1
        elif here == "/":
            sign, place = -1, place + 1
        elif here == "(" and not group:
            group, place = True, place + 1
        elif here == ")" and group:
            group, sign, place = False, 1, place + 1
        else:
            found = _FACTOR.match(text, place)
            named = found and _lookup(found["name"])
            if not found or not named:
                return None
            power = sign * int(found["power"] or 1)
            factor *= named[0] ** power
            powers = [have + power * more for have, more in zip(powers, named[1], strict=True)]
            sign = sign if group else 1
            place = found.end()
    return None if group else (factor, tuple(powers))


def _lookup(name: str) -> tuple[float, Dimension] | None:
    name = _name(name)
    if name in _BARE:
        return _BARE[name]
    if name in _PREFIXED:
        return _PREFIXED[name]
    for prefix, factor in _PREFIX.items():
        if name.startswith(prefix) and (unit := _PREFIXED.get(name[len(prefix) :])):
            return factor * unit[0], unit[1]
    return None


def _name(name: str) -> str:
    """The symbol of a unit that may be written as a word."""
    word = name.strip().casefold()
    for spelled in (word, word.removesuffix("s")):
        if spelled in _WORDS and len(spelled) > 2:
            return _WORDS[spelled]
    return name.strip()


def _unwrap(text: str) -> str:
    """LaTeX's wrapping of units undone: \\text{..}, \\mathrm{..}, ^\\circ C, \\Omega, \\mu."""
    text = text.translate(_SUPERSCRIPT).replace("μ", "µ").replace("degrees C", "°C").replace("degree C", "°C")
    text = re.sub(r"\\(?:text|mathrm|rm|textrm|unit)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?\s*", "°", text)
    for latex, sign in (("\\Omega", "Ω"), ("\\mu", "µ"), ("\\degree", "°"), ("~", " "), ("\\ ", " "), ("℃", "°C")):
        text = text.replace(latex, sign)
    return text.replace("° C", "°C").replace("° F", "°F").replace("$", "").strip()

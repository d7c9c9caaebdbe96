"""Physics and chemistry: quantities are compared in SI units, everything else as mathematics.

The paper asks a judge model wherever there is a unit; here rules decide where both sides can be read as number and
unit, and the model is asked about the rest. `extra`: unit (of a reference without one), tolerance (relative, 1e-5).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from megatron_glmv.rl.rewards import mathematics
from megatron_glmv.rl.rewards.exact import references, same_symbols
from megatron_glmv.rl.rewards.numbers import close
from megatron_glmv.rl.rewards.quantity import parse_quantity
from megatron_glmv.rl.rewards.types import Verdict, Verifier, right, undecided, wrong

TOLERANCE = 1e-5
_FORMULA = re.compile(r"\\(?:mathrm|text|ce|rm)|[_{}^$\s]")
_SUBSTANCE = re.compile(r"(?:[A-Z][a-z]?\d*|\((?:[A-Z][a-z]?\d*){1,20}\)\d*){1,40}[+-]?")


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    tolerance = float(extra.get("tolerance", TOLERANCE))
    if same_symbols(final, answer):
        return right("the same text")
    said = parse_quantity(final)
    for reference in references(answer):
        meant = parse_quantity(reference, str(extra.get("unit", "")))
        if said is None or meant is None:
            continue
        if meant.unit and not said.unit:
            return undecided(f"no unit, the reference is in {meant.unit}")
        if meant.unit and said.dimension != meant.dimension:
            return wrong(f"{said.unit} does not measure what {meant.unit} measures")
        value = said.value if meant.unit or not said.unit else _bare(final)
        if value is not None and close(value, meant.value, tolerance):
            return right(f"the same quantity within {tolerance:g}")
        return wrong("another quantity")
    return mathematics.check(final, answer, {**extra, "tolerance": tolerance})


def check_chemistry(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    """As `check`, and formulas of substances letter by letter: a formula parser takes CO and Co for one symbol."""
    if len(final) <= mathematics.MAX_CHARS:
        said, meant = _FORMULA.sub("", final), [_FORMULA.sub("", one) for one in references(answer)]
        if said and said in meant:
            return right("the same formula")
        if meant and all(_SUBSTANCE.fullmatch(one) for one in (said, *meant)):
            return wrong("another substance")
    return check(final, answer, extra)


def _bare(text: str) -> float | None:
    """The number in front of a unit as it is written: all there is to compare where the reference names no unit."""
    found = re.match(r"\s*[+-]?[\d.,]+(?:[eE][+-]?\d+)?", text)
    said = parse_quantity(found[0]) if found else None
    return said.value if said else None


RUBRIC = (
    "Is the answer the same physical quantity or chemical species as the reference? The unit has to be right; another "
    "unit of the same kind with the value converted is right."
)
PHYSICS = Verifier("physics", check, isolated=True, needs="math_verify", rubric=RUBRIC)
CHEMISTRY = Verifier("chemistry", check_chemistry, isolated=True, needs="math_verify", rubric=RUBRIC)

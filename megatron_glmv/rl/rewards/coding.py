"""Programs: run in the sandbox against tests; what is expected never enters the sandbox, so a score cannot be faked.

The program is the answer, or what stands in its code fence. `extra` tests (or `answer`): a list of

    {"stdin": .., "stdout": ..}           also input, output: lines are compared without blanks at their ends
    {"call": "f", "args": [..], "kwargs": {..}, "expected": ..}
    "assert f(1) == 2"                    a comparison with a literal

`extra`: seconds and memory_mib of one test, partial (the share that passes instead of all or nothing).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_glmv.rl import sandbox
from megatron_glmv.rl.rewards.types import OPTIONAL, Verdict, Verifier, right, wrong
from megatron_glmv.rl.rewards.values import FENCE, unfence

MAX_TESTS = 32
SECONDS, ALL_SECONDS = 4.0, 60.0
TOLERANCE = 1e-6
MAX_CHARS = 50_000


@dataclass(frozen=True)
class Test:
    """One run: its input or the expression to evaluate, and what has to come out."""

    stdin: str
    call: str
    expected: Any


def check(final: str, answer: Any, extra: Mapping[str, Any]) -> Verdict:
    tests = read_tests(extra.get("tests") or answer)
    code = program(final)
    if len(code) > MAX_CHARS:
        return wrong(f"a program of more than {MAX_CHARS} characters")
    limits = sandbox.Limits(float(extra.get("seconds", SECONDS)), int(extra.get("memory_mib", 512)))
    passed, problem = 0, ""
    for number, test in enumerate(tests, start=1):
        outcome = sandbox.run(code, test.stdin, call=test.call, limits=limits)
        if fault := _fault(outcome, test):
            problem = problem or f"test {number}: {fault}"
            if not extra.get("partial"):
                return wrong(problem)
        else:
            passed += 1
    if passed == len(tests):
        return right(f"{passed} tests pass")
    return Verdict(passed / len(tests), f"{passed} of {len(tests)} tests pass; {problem}")


def program(final: str) -> str:
    """The code of an answer: its only fence, or of several the last one, or all of it."""
    if final.count(FENCE) > 2:
        pieces = final.split(FENCE)
        final = FENCE.join(("", pieces[-2] if len(pieces) % 2 else pieces[-1], ""))
    return unfence(final)


def read_tests(given: Any) -> list[Test]:
    """Raises ValueError where there are none, too many, or one of no known form: the data's fault."""
    several: Sequence[Any] = given if isinstance(given, (list, tuple)) else [given]
    if not several or given is None or len(several) > MAX_TESTS:
        raise ValueError(f"between 1 and {MAX_TESTS} tests have to be given")
    return [_read_test(one) for one in several]


def _read_test(given: Any) -> Test:
    if isinstance(given, str):
        return _read_assertion(given)
    if "call" in given:
        parts = [repr(value) for value in given.get("args", ())]
        parts += [f"{name}={value!r}" for name, value in given.get("kwargs", {}).items()]
        return Test("", f"{given['call']}({', '.join(parts)})", given["expected"])
    for given_input, expected in (("stdin", "stdout"), ("input", "output")):
        if expected in given:
            return Test(str(given.get(given_input, "")), "", str(given[expected]))
    raise ValueError("a test has stdin and stdout, or call, args and expected, or is an assertion")


def _read_assertion(text: str) -> Test:
    """`assert EXPRESSION == LITERAL`."""
    try:
        (statement,) = ast.parse(text.strip()).body
        assert isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)
        (comparison,), (literal,) = statement.test.ops, statement.test.comparators
        assert isinstance(comparison, ast.Eq)
        return Test("", ast.unparse(statement.test.left), ast.literal_eval(literal))
    except (AssertionError, SyntaxError, ValueError):
        raise ValueError(f"only `assert EXPRESSION == LITERAL` can be checked: {text[:80]!r}") from None


def _fault(outcome: sandbox.Outcome, test: Test) -> str:
    """Why a run failed its test, empty if it passed."""
    if outcome.end != "ok":
        said = outcome.stderr.strip().splitlines()
        return f"{outcome.end}{': ' + said[-1][:120] if said else ''}"
    if not test.call:
        same = _lines(outcome.stdout) == _lines(test.expected)
        return "" if same else f"prints {outcome.stdout[:60]!r}"
    try:
        value = ast.literal_eval(outcome.stdout)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return f"gives {outcome.stdout[:60]!r}"
    return "" if same_value(value, test.expected) else f"gives {outcome.stdout[:60]!r}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def same_value(said: Any, meant: Any) -> bool:
    """Equal, floats within 1e-6; a tuple is the list that JSON makes of it, and True is not 1."""
    if isinstance(said, (list, tuple)) and isinstance(meant, (list, tuple)):
        return len(said) == len(meant) and all(map(same_value, said, meant))
    if isinstance(said, dict) and isinstance(meant, dict):
        return said.keys() == meant.keys() and all(same_value(said[key], meant[key]) for key in meant)
    if isinstance(said, bool) or isinstance(meant, bool):
        return said is meant
    if isinstance(said, (int, float)) and isinstance(meant, (int, float)) and float in (type(said), type(meant)):
        return math.isclose(said, meant, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(said == meant)


VERIFIER = Verifier("coding", check, box=OPTIONAL, isolated=True, seconds=ALL_SECONDS, executes=True)

"""Accepts a config or refuses it, before any process starts: option, value, what is wrong, the nearest legal values."""

from __future__ import annotations

from collections.abc import Callable

from .errors import ConfigError, show
from .fingerprint import replace_option
from .layout_rules import encoder_rules, expert_rules, grid_rules, pipeline_rules, tensor_rules
from .problem import Problem, Rule
from .ranges import range_rules
from .rl_rules import rl_rules
from .run_rules import model_rules, precision_rules, training_rules
from .schema import Config

RULES: tuple[Rule, ...] = (
    model_rules,
    tensor_rules,
    encoder_rules,
    pipeline_rules,
    expert_rules,
    grid_rules,
    training_rules,
    precision_rules,
    rl_rules,
)
"""Those that compute with several options; they run once every number is in its range."""

NAMED = 2
"""Legal values that a message names for one option."""
TRIED = 64
"""Candidates that are tried for one option."""


def validate(config: Config, world: int | None = None) -> None:
    """Raises ConfigError for the first problem. `world`: ranks that a launcher started; None when we start them."""
    found = problems(config, world)
    if found:
        raise refusal(config, world, found)


def problems(config: Config, world: int | None) -> list[Problem]:
    """Everything wrong with a config: single values out of their range, else rules that are broken."""
    found = list(range_rules(config, world))
    return found or [problem for rule in RULES for problem in rule(config, world)]


def refusal(config: Config, world: int | None, found: list[Problem]) -> ConfigError:
    """The error for the first of `found`. A repair is named only after it was tried: it leaves no problem at all; else,
    where no single value does that, it answers this one and brings no new one; else it answers this one and is not
    itself wrong for another reason."""
    problem = found[0]
    before = {other.rule for other in found}
    tried: list[tuple[str, object, dict[str, str]]] = [
        (option, value, _broken(replace_option(config, option, value), world, problem))
        for option, candidates in problem.repairs
        for value in list(candidates)[:TRIED]
    ]
    grades: tuple[Callable[[str, dict[str, str]], bool], ...] = (
        lambda option, left: not left,
        lambda option, left: left.keys() < before,
        lambda option, left: problem.rule not in left and all(left[new] != option for new in left.keys() - before),
    )
    legal: list[tuple[str, object]] = []
    for good in grades:
        legal = legal or _few([(option, value) for option, value, left in tried if good(option, left)])
    fix = ", or ".join(filter(None, [_say(legal), problem.advice]))
    return ConfigError(problem.option, problem.value, problem.message, fix, tuple(legal))


def _broken(config: Config, world: int | None, problem: Problem) -> dict[str, str]:
    """The rules a config breaks, with the option each one names."""
    if problem.rule.startswith("range:"):  # a value in its range may still break a rule together with another one
        return {other.rule: other.option for other in range_rules(config, world)}
    return {other.rule: other.option for other in problems(config, world)}


def _few(pairs: list[tuple[str, object]]) -> list[tuple[str, object]]:
    """The first NAMED values of each option."""
    options = dict.fromkeys(option for option, _ in pairs)
    return [pair for option in options for pair in [p for p in pairs if p[0] == option][:NAMED]]


def _say(legal: list[tuple[str, object]]) -> str:
    by_option: dict[str, list[str]] = {}
    for option, value in legal:
        by_option.setdefault(option, []).append(show(value))
    return (
        "try " + ", or ".join(f"{option}={' or '.join(values)}" for option, values in by_option.items())
        if legal
        else ""
    )

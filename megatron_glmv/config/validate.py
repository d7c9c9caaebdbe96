"""Accepts a config or refuses it, before any process starts: option, value, what is wrong, the nearest legal values."""

from __future__ import annotations

from .errors import ConfigError, show
from .fingerprint import replace_option
from .layout_rules import expert_rules, grid_rules, pipeline_rules, tensor_rules
from .problem import Problem, Rule
from .ranges import range_rules
from .run_rules import model_rules, precision_rules, training_rules
from .schema import Config

RULES: tuple[Rule, ...] = (
    model_rules,
    tensor_rules,
    pipeline_rules,
    expert_rules,
    grid_rules,
    training_rules,
    precision_rules,
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
    """The error for the first of `found`, naming repairs that were tried: such a value leaves no problem, or, where
    there are several problems, answers this one and brings no new one."""
    problem = found[0]
    legal: list[tuple[str, object]] = []
    for whole in (True, False):
        for option, candidates in problem.repairs:
            tried = list(candidates)[:TRIED]
            good = [value for value in tried if _helps(config, world, found, option, value, whole)]
            legal += [(option, value) for value in good[:NAMED]]
        if legal:
            break
    fix = ", or ".join(filter(None, [_say(legal), problem.advice]))
    return ConfigError(problem.option, problem.value, problem.message, fix, tuple(legal))


def _helps(config: Config, world: int | None, found: list[Problem], option: str, value: object, whole: bool) -> bool:
    changed = replace_option(config, option, value)
    left = {problem.rule for problem in problems(changed, world)}
    if not whole and found[0].rule.startswith("range:"):  # a value in its range may still break a rule with another
        left = {problem.rule for problem in range_rules(changed, world)}
    return not left if whole else left < {problem.rule for problem in found}


def _say(legal: list[tuple[str, object]]) -> str:
    by_option: dict[str, list[str]] = {}
    for option, value in legal:
        by_option.setdefault(option, []).append(show(value))
    return (
        "try " + ", or ".join(f"{option}={' or '.join(values)}" for option, values in by_option.items())
        if legal
        else ""
    )

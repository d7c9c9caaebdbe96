"""Judging a file: lines of {domain, response, answer, ...} in, lines of judgements out, in the same order."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_glmv.data.errors import DataError
from megatron_glmv.rl.rewards.judge_model import JudgeModel
from megatron_glmv.rl.rewards.registry import Judge
from megatron_glmv.rl.rewards.reward_model import RewardModel
from megatron_glmv.rl.rewards.types import Item, Judgement, JudgeOptions

BATCH = 256
"""Lines judged together; results are written after each."""
FIELDS = ("domain", "response", "answer")


def main(
    path: Path,
    out: Path | None,
    options: JudgeOptions,
    model: JudgeModel | None = None,
    reward_model: RewardModel | None = None,
) -> None:
    """Judge every line of a file; a summary by verifier goes to stderr.

    Raises DataError for a line that is no item (with its number), before anything behind it is judged.
    """
    with Judge(options, model, reward_model) as judge, contextlib.ExitStack() as files:
        target = files.enter_context(out.open("w", encoding="utf-8")) if out else sys.stdout
        lines = read_items(path)
        while batch := list(islice(lines, BATCH)):
            for (name, _), judgement in zip(batch, judge.judge([item for _, item in batch]), strict=True):
                target.write(json.dumps(as_line(name, judgement)) + "\n")
            target.flush()
        for name, figures in judge.health.summary().items():
            print(
                f"{name}: {figures['judged']} judged, mean reward {figures['reward_mean']:.3f}, "
                f"{figures['malformed']:.0%} malformed, {figures['timeouts']} timeouts, "
                f"p95 {figures['seconds_p95']:.3f} s",
                file=sys.stderr,
            )
        if "none" in judge.health.verifiers:
            print("warning: some domains have no verifier; see the reasons", file=sys.stderr)
        for warning in judge.health.warnings():
            print(f"warning: {warning}", file=sys.stderr)


def read_items(path: Path) -> Iterator[tuple[Any, Item]]:
    """(id or None, item) of each line; empty lines are passed over. Raises DataError."""
    try:
        file = path.open(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from None
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield read_item(line, f"{path}:{number}")


def read_item(line: str, where: str) -> tuple[Any, Item]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(where, f"no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise DataError(where, "has to be an object {domain, response, answer, ...}")
    for name in FIELDS:
        if name not in fields:
            raise DataError(where, f"without {name!r}: a line is {{domain, response, answer, ...}}")
    for name in ("domain", "response"):
        if not isinstance(fields[name], str):
            raise DataError(where, f"{name} has to be text")
    nested = fields.pop("extra", None) or {}
    if not isinstance(nested, dict):
        raise DataError(where, "extra has to be an object")
    domain, response, answer = (fields.pop(name) for name in FIELDS)
    return fields.pop("id", None), Item(domain, response, answer, {**fields, **nested})


def as_line(name: Any, judgement: Judgement) -> dict[str, Any]:
    """A judgement as JSON; `failed` and `parts` only where they say something, `id` where the item had one."""
    line = asdict(judgement)
    for field in ("failed", "parts"):
        if not line[field]:
            del line[field]
    return line if name is None else {"id": name, **line}

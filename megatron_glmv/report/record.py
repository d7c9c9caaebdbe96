"""What a run directory holds, read for the report. Nothing has to be there: what is missing or unreadable is named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.types import Json

Points = list[tuple[int, float]]
"""(step, value) in the order of steps."""


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation: a directory with results.json and predictions.jsonl."""

    name: str
    path: Path
    results: Json
    predictions: list[Json]

    @property
    def shuffled(self) -> bool:
        return bool(self.results.get("shuffled"))


@dataclass(frozen=True)
class RunRecord:
    path: Path
    config: Json = field(default_factory=dict)
    metrics: list[Json] = field(default_factory=list)
    attempts: list[Json] = field(default_factory=list)
    manifest: Json = field(default_factory=dict)
    """That of the newest committed checkpoint."""
    evals: list[EvalRecord] = field(default_factory=list)
    verifiers: dict[str, Json] = field(default_factory=dict)
    """Health figures of each verifier of a reinforcement learning run; empty elsewhere."""
    problems: list[str] = field(default_factory=list)
    """Sentences about what is absent or unreadable."""

    @property
    def name(self) -> str:
        """The directory, with its parent where that is the experiment's."""
        experiment = self.config.get("experiment")
        return f"{experiment}/{self.path.name}" if experiment == self.path.parent.name else self.path.name

    def series(self, key: str) -> Points:
        """The finite values of a metric."""
        return [(line["step"], float(line[key])) for line in self.metrics if _finite(line.get(key)) and "step" in line]

    def option(self, dotted: str) -> Any:
        """A value of the config; None where it has none."""
        value: Any = self.config
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def control(self, plain: EvalRecord) -> EvalRecord | None:
        """The evaluation of the same questions and checkpoint with shuffled media."""
        same = ("data", "checkpoint")
        found = [e for e in self.evals if e.shuffled and all(e.results.get(k) == plain.results.get(k) for k in same)]
        return found[0] if found else None


def read_run(path: Path) -> RunRecord:
    """Raises DataError only when the directory itself is not there."""
    if not path.is_dir():
        raise DataError(path, "is not a run directory")
    problems: list[str] = []
    return RunRecord(
        path=path.resolve(),
        config=_config(path / "config.yaml", problems),
        metrics=_lines(path / "metrics.jsonl", problems),
        attempts=_lines(path / "attempts.jsonl", problems),
        manifest=_manifest(path / "checkpoints", problems),
        evals=_evals(path / "eval", problems),
        verifiers=_object(path / "verifiers.json", problems) if (path / "verifiers.json").exists() else {},
        problems=problems,
    )


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def _config(path: Path, problems: list[str]) -> Json:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is not there: the options of the run are unknown.")
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {error}.")
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _lines(path: Path, problems: list[str]) -> list[Json]:
    """The objects of a JSON Lines file; lines that are cut off (the run may be writing) are counted and left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        problems.append(f"{path.name} is not there.")
        return []
    records, bad = [], 0
    for line in filter(str.strip, text.splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            bad += 1
    if bad:
        problems.append(f"{path.name}: {bad} line{'s' * (bad > 1)} could not be read.")
    return records


def _object(path: Path, problems: list[str]) -> Json:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.parent.name}/{path.name} cannot be read: {error}.")
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _manifest(folder: Path, problems: list[str]) -> Json:
    found = [path for path in folder.glob("step_*/manifest.json") if path.parent.name[5:].isdigit()]
    if not found:
        problems.append("There is no committed checkpoint.")
        return {}
    return _object(max(found, key=lambda path: int(path.parent.name[5:])), problems)


def _evals(folder: Path, problems: list[str]) -> list[EvalRecord]:
    found = sorted(folder.glob("*/results.json"))
    if not found:
        problems.append("There is no evaluation (glmv eval writes eval/NAME/results.json).")
    records = []
    for path in found:
        if results := _object(path, problems):
            predictions = _lines(path.parent / "predictions.jsonl", problems)
            records.append(EvalRecord(path.parent.name, path.parent, results, predictions))
    return records

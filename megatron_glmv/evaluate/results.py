"""What an evaluation leaves on disk: results.json and predictions.jsonl, and the tables people read.

results.json       what was asked of whom, and the scores: overall, and by task, tier and domain
predictions.jsonl  one line a question: what was shown and asked, the reply, the answer taken from it, right or wrong

Media paths in predictions are relative to the file of questions, whose absolute path is `data` in results.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.types import Json
from megatron_glmv.evaluate.metrics import Graded, Score, score, score_by

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
TOTAL = "all tasks"


def summarise(graded: Sequence[Graded]) -> Json:
    """Scores over everything and by task, tier and domain. Groups whose name is empty are left out."""
    groups = {f"{field}s": score_by(graded, field) for field in ("task", "tier", "domain")}
    by_group = {name: {key: s.to_json() for key, s in scores.items() if key} for name, scores in groups.items()}
    return {"overall": score(graded).to_json(), **by_group}


def write(out: Path, results: Json, predictions: Sequence[Json]) -> None:
    """results.json comes last and in one piece: where it is, the evaluation is whole."""
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULTS).unlink(missing_ok=True)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    (out / PREDICTIONS).write_text(lines, encoding="utf-8")
    temporary = out / f".{RESULTS}.tmp"
    temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(out / RESULTS)


def read(path: Path) -> Json:
    """results.json of an evaluation directory, or the file itself. Raises DataError."""
    file = path / RESULTS if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        for name, values in {**results["tasks"], TOTAL: results["overall"]}.items():
            Score(**values), str(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(file, f"is not the result of an evaluation ({type(error).__name__}: {error})") from error
    return dict(results)


def scores_of(results: Json, by: str = "tasks") -> dict[str, Score]:
    """By task (or tier, or domain), and over all where there are several."""
    groups = {name: Score(**values) for name, values in results[by].items()}
    return {**groups, TOTAL: Score(**results["overall"])} if len(groups) > 1 else groups


def table(title: str, plain: dict[str, Score], control: dict[str, Score] | None = None, by: str = "task") -> Table:
    """Accuracy by task, or another group; with `control` also what is left when the media are shuffled."""
    made = Table(
        title=title,
        title_justify="left",
        caption="above chance = (right - chance) / (1 - chance)"
        + ("; shuffled: the same with the media exchanged" if control else ""),
    )
    made.caption_justify = "left"
    made.add_column(by)
    for name in ("questions", "right", "chance", "above chance", "95 % interval"):
        made.add_column(name, justify="right", no_wrap=True)
    if control is not None:
        made.add_column("shuffled", justify="right", no_wrap=True)
    for name, s in plain.items():
        cells = [f"{s.n:,}", f"{s.accuracy:.1%}", f"{s.chance:.1%}", f"{s.above_chance:.3f}", _interval(s)]
        if control is not None:
            cells.append(f"{control[name].above_chance:.3f}" if name in control else "none")
        made.add_row(name, *cells, end_section=name == list(plain)[-2:][0] and TOTAL in plain)
    return made


def show(made: Table) -> None:
    """Prints a table; into a file or a pipe 120 columns wide."""
    Console(width=None if sys.stdout.isatty() else 120).print(made)


def compare(a: Path, b: Path) -> Table:
    """Two evaluations side by side by task. Raises DataError where one is not there.

    A difference is marked where the two 95 % intervals do not overlap; that is stricter than a test at 5 %.
    """
    left, right = scores_of(read(a)), scores_of(read(b))
    made = Table(title=f"above chance: A = {a}, B = {b}", title_justify="left")
    made.add_column("task")
    for name in ("A", "95 % interval", "B", "95 % interval", "B - A", "apart"):
        made.add_column(name, justify="right")
    for name in {**left, **right}:
        one, other = left.get(name), right.get(name)
        cells = [
            text for s in (one, other) for text in ((f"{s.above_chance:.3f}", _interval(s)) if s else ("none", ""))
        ]
        if one and other:
            apart = one.high < other.low or other.high < one.low
            cells += [f"{other.above_chance - one.above_chance:+.3f}", "yes" if apart else "no"]
        made.add_row(name, *cells)
    return made


def _interval(s: Score) -> str:
    return f"{s.low:.3f} .. {s.high:.3f}"

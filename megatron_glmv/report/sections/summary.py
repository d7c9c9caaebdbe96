"""The head of the page: what ran, how far, on what layout and versions, and how each attempt ended."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from megatron_glmv.data.types import Json
from megatron_glmv.report.chart import short
from megatron_glmv.report.html import Child, Markup, absent, join, table, tag, whole
from megatron_glmv.report.record import RunRecord

LAYOUT = (
    ("TP", "tensor"),
    ("PP", "pipeline"),
    ("VPP", "virtual_pipeline"),
    ("CP", "context"),
    ("EP", "expert"),
    ("ETP", "expert_tensor"),
    ("DP", "data"),
)
MAX_ATTEMPTS = 50


class Summary:
    title = "Summary"
    anchor = "summary"

    def render(self, runs: Sequence[RunRecord]) -> Markup:
        return join(_one(run) for run in runs)


def _one(run: RunRecord) -> Markup:
    problems = [absent(problem) for problem in run.problems]
    return join([tag("h3", run.name), tag("div", *_tiles(run), class_="tiles"), _facts(run), _attempts(run), problems])


def _tiles(run: RunRecord) -> list[Markup]:
    """The few numbers one looks for first; a number that is not there has no tile."""
    tiles = []

    def tile(label: str, value: str, note: str = "") -> None:
        tiles.append(
            tag("div", tag("b", value), tag("span", label), tag("small", note) if note else None, class_="tile")
        )

    if steps := [line["step"] for line in run.metrics if isinstance(line.get("step"), int)]:
        planned = run.option("train.steps")
        tile("steps", f"{steps[-1]:,}", f"of {planned:,}" if isinstance(planned, int) else "")
    for key, label in (("loss", "training loss"), ("val_loss", "validation loss")):
        if points := run.series(key):
            tail = [value for _, value in points[-max(1, len(points) // 50) :]] if key == "loss" else [points[-1][1]]
            tile(label, f"{statistics.fmean(tail):.4f}", f"from {points[0][1]:.2f}")
    if points := run.series("tokens"):
        tile("tokens", short(points[-1][1]))
    if points := run.series("samples"):
        tile("samples", short(points[-1][1]))
    if seconds := sum(value for _, value in run.series("step_time_s")):
        tile("in training steps", duration(seconds))
    for record in run.evals:
        if not record.shuffled and (overall := record.results.get("overall")):
            tile(f"above chance, {record.name}", f"{overall['above_chance']:.2f}", f"{overall['n']:,} questions")
    return tiles


def _facts(run: RunRecord) -> Markup:
    rows: list[tuple[str, Any]] = [
        ("directory", str(run.path)),
        ("experiment", run.option("experiment")),
        ("stage", run.option("stage.name")),
        ("model", _model(run)),
        ("layout", layout(run.option("parallel") or {})),
        ("precision", run.option("precision.name")),
        ("batch", _batch(run)),
        ("seed", run.option("train.seed")),
        ("newest checkpoint", _checkpoint(run.manifest)),
        ("versions", _versions(run.manifest)),
    ]
    body = [tag("tr", tag("th", label), tag("td", str(value))) for label, value in rows if value not in (None, "")]
    return tag("div", tag("table", tag("tbody", body), class_="facts"), class_="scroll")


def layout(parallel: Json) -> str:
    """TP2 x PP2 x EP2 for what differs from 1; 'one process' for nothing."""
    parts = [f"{short_name}{parallel[key]}" for short_name, key in LAYOUT if isinstance(parallel.get(key), int)]
    parts = [part for part in parts if not part.endswith("1") or part[-2].isdigit()]
    if not parallel:
        return ""
    return " x ".join(parts) if parts else "one process"


def _model(run: RunRecord) -> str:
    text, vision = run.option("model.text"), run.option("model.vision")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        return str(run.option("model.name") or "")
    moe = text.get("moe")
    experts = f", {moe['experts']} experts, {moe['topk']} active" if isinstance(moe, dict) else ", dense"
    return (
        f"{run.option('model.name')}: decoder of {text.get('layers')} layers, width {text.get('hidden')}{experts}; "
        f"vision encoder of {vision.get('depth')} layers, width {vision.get('hidden')}"
    )


def _batch(run: RunRecord) -> str:
    packs, tokens = run.option("train.global_batch"), run.option("data.pack_tokens")
    if not isinstance(packs, int) or not isinstance(tokens, int):
        return ""
    ramp = run.option("train.batch_until")
    first = sorted((int(until), few) for until, few in ramp.items()) if isinstance(ramp, dict) else []
    grown = ", ".join(f"{few:,} before step {until:,}" for until, few in first)
    return f"{packs:,} packs of {tokens:,} tokens" + (f" ({grown})" if grown else "")


def _checkpoint(manifest: Json) -> str:
    return f"step {manifest['step']}" if "step" in manifest else ""


def _versions(manifest: Json) -> str:
    libraries = manifest.get("libraries")
    versions = {"megatron_glmv": manifest.get("package_version")} | (libraries if isinstance(libraries, dict) else {})
    return ", ".join(f"{name} {value}" for name, value in versions.items() if value)


def _attempts(run: RunRecord) -> Markup | None:
    """One row a start of the run. Of a run that was requeued for weeks, the last fifty."""
    if not run.attempts:
        return None
    rows: list[list[Child]] = []
    for place, attempt in list(enumerate(run.attempts, start=1))[-MAX_ATTEMPTS:]:
        code = attempt.get("exit_code")
        first, last = (attempt.get(key) for key in ("step_in", "step_out"))
        steps = f"{'?' if first is None else first} to {'?' if last is None else last}"
        rows.append([
            whole(place), _clock(attempt.get("start")), _took(attempt), steps, str(attempt.get("reason") or ""),
            tag("td", "none" if code is None else str(code), class_="num good" if code == 0 else "num"),
        ])  # fmt: skip
    head = ("attempt", "start", "took", "steps", "ended because", "exit code")
    return join([tag("h4", "Attempts"), table(head, rows)])


def _took(attempt: Json) -> str:
    if isinstance(attempt.get("seconds"), int | float):
        return duration(attempt["seconds"])
    start, end = (_moment(attempt.get(key)) for key in ("start", "end"))
    return duration((end - start).total_seconds()) if start and end else ""


def _moment(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _clock(value: Any) -> str:
    moment = _moment(value)
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else ""


def duration(seconds: float) -> str:
    """42 s, 11 min 3 s, 2 h 5 min."""
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(whole_seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"

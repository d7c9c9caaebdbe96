"""What was learned: accuracy above chance by task on held-out questions, beside the control with shuffled media."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_glmv.data.types import Json
from megatron_glmv.report.chart import COLOURS
from megatron_glmv.report.html import Child, Markup, absent, join, number, table, tag, whole
from megatron_glmv.report.record import EvalRecord, RunRecord

WIDTH, HEIGHT, PAD = 260.0, 22.0, 8.0
LOW, HIGH = -0.35, 1.0
"""Range of the drawn axis. Below it nothing is expected: with four choices all wrong is -0.33."""

HEAD = ("task", "questions", "right", "chance", "above chance", "95 % interval", "media shuffled")


class Accuracy:
    title = "Accuracy"
    anchor = "accuracy"

    def render(self, runs: Sequence[RunRecord]) -> Markup | None:
        found = [(i, run, record) for i, run in enumerate(runs) for record in run.evals]
        if not found:
            return absent("Nothing was evaluated: glmv eval writes RUN_DIR/eval/NAME.")
        controls = {id(c) for _, run, record in found if not record.shuffled and (c := run.control(record))}
        parts = [_explanation()]
        for i, run, record in found:
            if id(record) not in controls:
                parts.append(_one(run, record, i, several=len(runs) > 1))
        return join(parts)


def _explanation() -> Markup:
    return tag(
        "p",
        "Exact match on held-out questions. Above chance is (right - chance) / (1 - chance): 0 for one who guesses "
        "among the choices, 1 for all right. ",
        tag("i", class_="key c0"),
        "as asked, with its 95 % interval; ",
        tag("i", class_="key hollow"),
        "the same questions with the media exchanged between samples: what is right there was not seen.",
        class_="note",
    )


def _one(run: RunRecord, record: EvalRecord, colour: int, *, several: bool) -> Markup:
    control = run.control(record) if not record.shuffled else None
    other = control.results.get("tasks", {}) if control else {}
    tasks: Json = record.results.get("tasks", {})
    missing = "no media" if control else "not run"
    rows = [_row(name, score, other.get(name), colour, missing) for name, score in tasks.items()]
    if len(tasks) > 1 and (overall := record.results.get("overall")):
        rows.append(_row("all", overall, control.results.get("overall") if control else None, colour, missing))
    name = f"{run.name}: {record.name}" if several else record.name
    about = [f"checkpoint {record.results.get('checkpoint', 'unknown')}"]
    about.append(f"questions {record.results.get('data', 'unknown')}")
    if record.shuffled:
        about.append("media shuffled")
    elif control is None:
        about.append("no control with shuffled media (glmv eval --shuffle-media)")
    parts = [tag("h3", name), tag("p", "; ".join(about), class_="note"), table(HEAD, rows, class_="scores")]
    for group, title in (("domains", "by domain"), ("tiers", "by tier of difficulty")):
        scores: Json = record.results.get(group, {})
        if len(scores) > 1:
            head = (group.removesuffix("s"), *HEAD[1:-1])
            grouped = table(head, [_row(key, s, None, colour, "")[:-1] for key, s in scores.items()], class_="scores")
            parts.append(tag("details", tag("summary", title), grouped))
    return join(parts)


def _row(name: str, score: Json, control: Json | None, colour: int, missing: str) -> list[Child]:
    """`missing`: what stands in the control's column where there is none."""
    interval = f"{score['low']:.2f} to {score['high']:.2f}"
    return [
        tag("th", name),
        whole(score["n"]),
        tag("td", f"{score['accuracy']:.1%}", class_="num"),
        tag("td", f"{score['chance']:.1%}", class_="num"),
        tag(
            "td",
            tag("span", _drawing(score, control, colour), tag("b", f"{score['above_chance']:z.2f}"), class_="drawn"),
        ),
        tag("td", interval, class_="num"),
        number(control["above_chance"], 2) if control else tag("td", missing, class_="num absent"),
    ]


def _u(value: float) -> float:
    value = min(max(value, LOW), HIGH)
    return PAD + (value - LOW) / (HIGH - LOW) * (WIDTH - 2 * PAD)


def _drawing(score: Json, control: Json | None, colour: int) -> Markup:
    """A bar from chance to the score, its interval, and the control as a hollow dot."""
    middle = HEIGHT / 2
    here = _u(score["above_chance"])
    zero = _u(0.0)
    parts = [
        tag("line", x1=_u(x), x2=_u(x), y1=0.0, y2=HEIGHT, class_="axis" if x == 0 else "grid") for x in (0.0, 0.5, 1.0)
    ]
    parts.append(tag("rect", x=min(zero, here), y=middle - 4, width=abs(here - zero), height=8.0, rx=2, class_="bar"))
    parts.append(tag("line", x1=_u(score["low"]), x2=_u(score["high"]), y1=middle, y2=middle, class_="whisker"))
    parts.append(tag("circle", cx=here, cy=middle, r=3.6, class_="dot"))
    if control:
        ends = {"x1": _u(control["low"]), "x2": _u(control["high"]), "y1": middle, "y2": middle}
        parts.append(tag("line", **ends, class_="whisker control"))
        parts.append(tag("circle", cx=_u(control["above_chance"]), cy=middle, r=3.6, class_="hollow"))
    label = f"{score['above_chance']:.2f} above chance"
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
        class_=f"bars c{colour % COLOURS}",
        role="img",
        aria_label=label,
    )

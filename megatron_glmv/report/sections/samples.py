"""What the model answered: for each task a few held-out questions with their pictures, right and wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_glmv.data.types import IMAGE, VIDEO, Json
from megatron_glmv.report.html import Markup, absent, join, tag
from megatron_glmv.report.media import MediaUnreadable, thumbnails
from megatron_glmv.report.record import EvalRecord, RunRecord

RIGHT, WRONG = 2, 1
"""Shown of each task; where there are too few of one kind, more of the other."""
MAX_SHOWN = 60
"""Pictures are most of a page's bytes: 60 questions are about 1 MB."""
MAX_TEXT = 600


class Samples:
    title = "Answers"
    anchor = "answers"

    def render(self, runs: Sequence[RunRecord]) -> Markup | None:
        parts = [_one(run, record, len(runs) > 1) for run in runs for record in run.evals if not record.shuffled]
        if not parts:
            return absent("No predictions to show.")
        note = tag(
            "p",
            f"Of each task {RIGHT} right and {WRONG} wrong, in the order of the questions.",
            class_="note",
        )
        return join([note, *parts])


def choose(predictions: Sequence[Json]) -> list[Json]:
    """By task: the first RIGHT right and WRONG wrong predictions, filled up from the other kind."""
    tasks: dict[str, dict[bool, list[Json]]] = {}
    for prediction in predictions:
        kinds = tasks.setdefault(str(prediction.get("task", "")), {True: [], False: []})
        kinds[bool(prediction.get("correct"))].append(prediction)
    chosen: list[Json] = []
    for task in sorted(tasks):
        right, wrong = tasks[task][True], tasks[task][False]
        wanted = RIGHT + WRONG
        n_right = min(len(right), max(RIGHT, wanted - len(wrong)))
        chosen += right[:n_right] + wrong[: wanted - n_right]
    return chosen[:MAX_SHOWN]


def _one(run: RunRecord, record: EvalRecord, several: bool) -> Markup:
    name = f"{run.name}: {record.name}" if several else record.name
    if not record.predictions:
        return join([tag("h3", name), absent("predictions.jsonl is not there.")])
    folder = Path(str(record.results.get("data", ""))).parent
    cards = [_card(prediction, folder) for prediction in choose(record.predictions)]
    return join([tag("h3", name), tag("div", *cards, class_="cards")])


def _card(prediction: Json, folder: Path) -> Markup:
    right = bool(prediction.get("correct"))
    tier = str(prediction.get("tier") or "")
    head = tag(
        "div", tag("b", str(prediction.get("task", ""))), tag("small", tier) if tier else None, class_="cardhead"
    )
    answer = _cut(str(prediction.get("prediction", ""))) or "(nothing)"
    verdict = tag("span", "✓" if right else "✗", class_="good" if right else "bad", title="right" if right else "wrong")
    said = tag("p", verdict, " ", tag("b", answer), class_="said")
    truth = None if right else tag("p", "answer: ", tag("b", _cut(str(prediction.get("answer", "")))), class_="truth")
    question = tag("p", _cut(str(prediction.get("prompt", ""))), class_="question")
    words = tag("div", question, said, truth, class_="words")
    pictures = _pictures(prediction, folder)
    beside = 'class="still"' in pictures and 'class="strip"' not in pictures  # a strip takes the card's whole width
    return tag("article", head, tag("div", pictures, words, class_="beside" if beside else None), class_="card")


def _pictures(prediction: Json, folder: Path) -> Markup:
    shown: list[Markup] = []
    media = prediction.get("media")
    for part in media if isinstance(media, list) else []:
        for kind in (IMAGE, VIDEO):
            if isinstance(part, dict) and isinstance(part.get(kind), str):
                shown.append(_picture(kind, folder / part[kind]))
    return tag("div", *shown, class_="media")


def _picture(kind: str, path: Path) -> Markup:
    try:
        uris = thumbnails(kind, path)
    except MediaUnreadable as error:
        return absent(f"not shown: {error}")
    alt = f"{kind} {path.name}"
    return tag(
        "div", *[tag("img", src=uri, alt=alt, title=alt) for uri in uris], class_="strip" if len(uris) > 1 else "still"
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"

"""Questions from a file, the exchange of their media, and results on disk."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_glmv.data.errors import DataError
from megatron_glmv.evaluate.dataset import Question, load_questions
from megatron_glmv.evaluate.metrics import Graded
from megatron_glmv.evaluate.results import compare, read, scores_of, summarise, write
from megatron_glmv.evaluate.shuffle import derange, shuffle_media


def line(number: int, task: str, media: list[tuple[str, str]], **more: Any) -> dict[str, Any]:
    parts = [{"type": kind, kind: path} for kind, path in media]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": f"question {number}?"}]}
    known = {"id": f"q{number}", "task": task, "tier": "1", "domain": "d", "answer": "red", "choices": ["red", "blue"]}
    return {**known, "messages": [user], **more}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def test_media_are_found_beside_the_file_wherever_it_is_read_from(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [line(0, "colour", [("image", "m/a.png"), ("video", "b.webm")])])
    (question,) = load_questions(path)
    assert question.media == (("image", str(tmp_path / "m/a.png")), ("video", str(tmp_path / "b.webm")))
    assert (question.chance, question.prompt, question.answer) == (0.5, "question 0?", "red")


def test_a_conversation_without_answer_field_is_asked_for_its_last_turn(tmp_path: Path) -> None:
    user = {"role": "user", "content": "what?"}
    said = {"role": "assistant", "content": [{"type": "text", "text": "that"}]}
    path = write_lines(tmp_path / "q.jsonl", [{"id": "x", "messages": [user, said], "domain": "chat"}])
    (question,) = load_questions(path)
    assert (question.answer, question.task, question.chance) == ("that", "chat", 0.0)
    assert question.messages == [user]


def test_the_answer_never_reaches_the_prompt(tmp_path: Path) -> None:
    one = line(0, "t", [])
    one["messages"].append({"role": "assistant", "content": "blue"})
    (question,) = load_questions(write_lines(tmp_path / "q.jsonl", [one]))
    assert [message["role"] for message in question.messages] == ["user"]
    assert question.answer == "red"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"id": "x"}, "messages"),
        ({"id": "x", "messages": [{"role": "user", "content": "?"}]}, "nothing to compare with"),
        ({"id": "x", "answer": "a", "messages": [{"role": "assistant", "content": "a"}]}, "no user turn"),
        ({"id": "x", "answer": "a", "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "image"),
        ({"id": "q0", "answer": "a", "messages": [{"role": "user", "content": "?"}]}, "used before"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, bad: dict[str, Any], why: str) -> None:
    path = write_lines(tmp_path / "q.jsonl", [line(0, "t", []), bad])
    with pytest.raises(DataError, match="line 2") as caught:
        load_questions(path)
    assert why in str(caught.value) and caught.value.exit_code == 65


def test_a_limit_holds_for_each_task(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [line(i, "ab"[i % 2], []) for i in range(20)])
    assert [q.id for q in load_questions(path, limit=2)] == ["q0", "q1", "q2", "q3"]


def test_a_missing_or_empty_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no question"):
        load_questions(write_lines(tmp_path / "empty.jsonl", []))


def questions(tmp_path: Path) -> list[Question]:
    """Two image tasks with four questions a picture, one video task, one of text."""
    lines = [line(i, "count", [("image", f"{i // 4}.png")]) for i in range(40)]
    lines += [line(100 + i, "colour", [("image", f"c{i // 4}.png")]) for i in range(24)]
    lines += [line(200 + i, "motion", [("video", f"{i}.webm")]) for i in range(15)]
    lines += [line(300, "text", [])]
    return load_questions(write_lines(tmp_path / "q.jsonl", lines))


def test_no_question_keeps_its_media_and_none_crosses_task_or_kind(tmp_path: Path) -> None:
    asked = questions(tmp_path)
    shuffled, left_out = shuffle_media(asked, seed=3)
    assert left_out == ["q300"]
    before = {q.id: q for q in asked}
    for question in shuffled:
        old = before[question.id]
        assert question.media != old.media
        assert [kind for kind, _ in question.media] == [kind for kind, _ in old.media]
        assert (question.answer, question.choices, question.prompt) == (old.answer, old.choices, old.prompt)
    for task in ("count", "colour", "motion"):
        shown = [Counter(q.media for q in group if q.task == task) for group in (asked, shuffled)]
        assert shown[0] == shown[1], "every picture is shown as often as before"


def test_the_exchange_is_that_of_its_seed(tmp_path: Path) -> None:
    asked = questions(tmp_path)
    once, again, other = (shuffle_media(asked, seed)[0] for seed in (1, 1, 2))
    assert once == again
    assert once != other
    assert asked == questions(tmp_path), "the questions that were given are left alone"


def test_a_derangement_is_found_whenever_there_is_one() -> None:
    for counts in ([1, 1], [2, 2], [3, 1, 2], [5, 3, 2], [1] * 9, [4, 4, 1]):
        items = [((("image", f"{i}")),) for i, count in enumerate(counts) for _ in range(count)]
        for seed in range(20):
            moved = derange(items, random.Random(seed))
            assert moved is not None and all(a != b for a, b in zip(items, moved, strict=True))
            assert Counter(moved) == Counter(items)
    for counts in ([1], [3, 1], [2, 1]):
        items = [((("image", f"{i}")),) for i, count in enumerate(counts) for _ in range(count)]
        assert derange(items, random.Random(0)) is None


def results(right: int) -> dict[str, Any]:
    graded = [Graded(f"{t}{i}", t, "easy", "image", "a", 0.25, "a", i < right) for t in ("x", "y") for i in range(100)]
    return {"checkpoint": "c", "data": "d", "shuffled": False, **summarise(graded)}


def test_results_come_back_from_disk_and_scores_agree(tmp_path: Path) -> None:
    write(tmp_path / "a", results(70), [{"id": "x0", "correct": True}])
    again = read(tmp_path / "a")
    assert again == results(70)
    assert scores_of(again)["x"].correct == 70
    assert scores_of(again)["all tasks"].n == 200
    assert json.loads((tmp_path / "a" / "predictions.jsonl").read_text()) == {"id": "x0", "correct": True}


def test_two_results_stand_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "a", results(50), [])
    write(tmp_path / "b", results(90), [])
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(compare(tmp_path / "a", tmp_path / "b"))
    row = next(text for text in console.export_text().splitlines() if " x " in text)
    assert "0.333" in row and "0.867" in row and "+0.533" in row and "yes" in row


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"tasks": {"x": {"n": 1}}, "overall": {}}')
    with pytest.raises(DataError, match="is not the result of an evaluation"):
        read(tmp_path)

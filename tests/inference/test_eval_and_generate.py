"""`eval`, `generate` and `report` from a checkpoint on disk to what is printed and written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.answering import make_answering_run, write_media

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.tokenizer import train_tokenizer
from megatron_glmv.evaluate import generate, run
from megatron_glmv.inference.load import load_for_inference
from megatron_glmv.report import page


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_answering_run(tmp_path_factory.mktemp("runs") / "one")


def question(number: int, task: str, kind: str, path: str, answer: str) -> dict[str, Any]:
    user = [{"type": kind, kind: path}, {"type": "text", "text": "Which colour is it?"}]
    known = {"id": f"{task}-{number}", "task": task, "tier": "easy", "domain": kind, "choices": ["red", "blue"]}
    return {**known, "answer": answer, "messages": [{"role": "user", "content": user}]}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    write_media(tmp_path / "media")
    lines = [question(i, "colour", "image", f"media/{'abc'[i % 3]}.png", "red") for i in range(9)]
    lines += [question(i, "motion", "video", f"media/{'vw'[i % 2]}.webm", "up") for i in range(4)]
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_eval_writes_scores_and_answers_of_both_ways(
    checkpoint: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    out = run.main(checkpoint, questions, control=True, max_new_tokens=3, batch_size=4)
    assert out == checkpoint.parent.parent / "eval" / "held"
    results = json.loads((out / "results.json").read_text())
    assert {name: score["n"] for name, score in results["tasks"].items()} == {"colour": 9, "motion": 4}
    assert results["checkpoint"] == str(checkpoint) and results["step"] == 3 and not results["shuffled"]

    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [p["id"] for p in predictions] == [line["id"] for line in lines]
    assert predictions[0]["media"] == [{"image": "media/a.png"}]
    assert all(p["tokens"] <= 3 and p["finish"] in ("stop", "length") for p in predictions)

    control = out.with_name("held-shuffled")
    moved = [json.loads(line) for line in (control / "predictions.jsonl").read_text().splitlines()]
    assert all(a["media"] != b["media"] and a["prompt"] == b["prompt"] for a, b in zip(predictions, moved, strict=True))
    # What is asked about a picture in the control is what is asked about it plainly: the same prompt, the same reply.
    plain = {(json.dumps(p["media"]), p["prompt"]): p["reply"] for p in predictions}
    assert all(plain[json.dumps(p["media"]), p["prompt"]] == p["reply"] for p in moved)

    printed = capsys.readouterr().out
    assert "shuffled" in printed and "colour" in printed and str(control) in printed
    text = page.main([checkpoint.parent.parent]).read_text()
    assert "held" in text and text.count("data:image/") >= 3 and "not run" not in text


def test_eval_counts_an_answer_that_the_model_gives_as_right(checkpoint: Path, questions: Path, tmp_path: Path) -> None:
    """The first run tells what the model says; told that this is the answer, it scores 1."""
    first = run.main(checkpoint, questions, tmp_path / "out", max_new_tokens=3)
    said = {p["id"]: p["prediction"] for p in map(json.loads, (first / "predictions.jsonl").read_text().splitlines())}
    assert all(said.values())
    lines = [json.loads(line) for line in questions.read_text().splitlines()]
    for line in lines:
        line["answer"] = said[line["id"]]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = run.main(checkpoint, questions, tmp_path / "again", max_new_tokens=3)
    assert json.loads((again / "results.json").read_text())["overall"]["above_chance"] == 1


def test_a_question_that_cannot_be_asked_counts_as_wrong(
    checkpoint: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = questions.parent / "media"
    (media / "a.png").write_bytes(b"no picture")
    whole = (media / "b.png").read_bytes()
    (media / "b.png").write_bytes(whole[: len(whole) // 2])
    out = run.main(checkpoint, questions, questions.parent / "out", max_new_tokens=2)
    results = json.loads((out / "results.json").read_text())
    assert results["failed"] == [f"colour-{i}" for i in range(9) if i % 3 != 2]
    assert results["tasks"]["colour"]["n"] == 9
    assert "6 questions could not be asked" in capsys.readouterr().err


def test_shuffled_alone_has_a_place_of_its_own(checkpoint: Path, questions: Path) -> None:
    out = run.main(checkpoint, questions, shuffle_media=True, limit=4, max_new_tokens=1)
    assert out.name == "held-shuffled"
    results = json.loads((out / "results.json").read_text())
    assert results["shuffled"] and results["overall"]["n"] == 8


def test_generate_answers_a_prompt_and_a_conversation_alike(
    checkpoint: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    media = questions.parent / "media"
    direct = generate.main(checkpoint, image=[media / "a.png"], prompt="Which colour is it?", max_new_tokens=4)
    file = questions.parent / "chat.json"
    file.write_text(json.dumps(question(0, "t", "image", "media/a.png", "red")))
    assert generate.main(checkpoint, messages=file, max_new_tokens=4) == direct
    assert capsys.readouterr().out.count(direct.text) >= 2


def test_generate_says_what_it_cannot_ask(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        generate.main(checkpoint)
    with pytest.raises(DataError, match=r"none\.png"):
        generate.main(checkpoint, image=[tmp_path / "none.png"], prompt="?")
    (tmp_path / "chat.json").write_text('{"messages": 3}')
    with pytest.raises(DataError, match="not a conversation"):
        generate.main(checkpoint, messages=tmp_path / "chat.json")


def test_another_tokenizer_is_refused_before_a_model_is_built(checkpoint: Path, tmp_path: Path) -> None:
    train_tokenizer(["other words entirely"], tmp_path / "other", 300)
    with pytest.raises(ConfigError, match="is not the tokenizer"), load_for_inference(checkpoint, tmp_path / "other"):
        pass


def test_a_checkpoint_moved_away_from_its_run_asks_for_its_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / checkpoint.name
    shutil.copytree(checkpoint, alone)
    with pytest.raises(ConfigError, match="--tokenizer"), load_for_inference(alone):
        pass
    with load_for_inference(alone, checkpoint.parent.parent / "data" / "tokenizer") as loaded:
        assert loaded.step == 3 and loaded.path == alone


def test_a_checkpoint_of_a_bf16_run_answers_in_bf16(tmp_path: Path) -> None:
    import torch

    made = make_answering_run(tmp_path / "half", "bf16")
    with load_for_inference(made) as loaded:
        assert {p.dtype for p in loaded.engine.model.language.embedding.parameters()} == {torch.bfloat16}
        prompt = loaded.prompts.build(
            {"messages": generate.one_turn([tmp_path / "half/data/media/a.png"], [], "Which?")}
        )
        (answer,) = loaded.engine.generate([prompt], 5)
    assert answer.finish in ("stop", "length")

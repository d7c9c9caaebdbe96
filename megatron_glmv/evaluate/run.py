"""`glmv eval`: asks a checkpoint the questions of a file, grades by exact match, and writes answers and scores."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from megatron_glmv.data.errors import SampleError
from megatron_glmv.data.progress import track
from megatron_glmv.data.types import Json
from megatron_glmv.evaluate.dataset import Question, load_questions
from megatron_glmv.evaluate.form import ANSWER, THINK, check_mode, form_of
from megatron_glmv.evaluate.grading import right
from megatron_glmv.evaluate.metrics import Graded, extract
from megatron_glmv.evaluate.results import scores_of, show, summarise, table, write
from megatron_glmv.evaluate.shuffle import shuffle_media as exchange
from megatron_glmv.inference.completion import FAILED, LENGTH, Completion
from megatron_glmv.inference.load import Loaded, load_for_inference
from megatron_glmv.inference.prompts import Prompt

SHUFFLED = "-shuffled"
SEED = 20250701
"""Of the exchange of media: fixed, so that two checkpoints are asked the same."""


def main(
    ckpt: Path,
    data: Path,
    out: Path | None = None,
    *,
    shuffle_media: bool = False,
    control: bool = False,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    limit: int | None = None,
    tokenizer: Path | None = None,
    mode: str = ANSWER,
) -> Path:
    """Evaluates, prints accuracy by task, and returns the directory of results.json and predictions.jsonl.

    mode: answer (the prompt holds the closed thinking), nothink (the prompt says /nothink and the model writes the
    rest), think (the thinking is left to the model). The last two are also counted by form: see evaluate/form.py.

    shuffle_media: asks with the media exchanged between samples instead (the control experiment). control: asks both
    ways, decoding and encoding each medium once, and prints them side by side; the control is written to OUT-shuffled.
    limit: questions of each task. Without `out` it is RUN_DIR/eval/<name of the file>, with -shuffled behind it for the
    control; in other modes than `answer` the mode's name stands before that. Raises ConfigError for a mode that is
    none, DataError, and what `load_for_inference` raises.
    """
    check_mode(mode)
    questions = load_questions(data, limit)
    made: dict[Path, Json] = {}
    with load_for_inference(ckpt, tokenizer) as loaded:
        name = out or _default_out(loaded.path, data, mode)
        for shuffled in (False, True) if control else (shuffle_media,):
            place = name.with_name(name.name + SHUFFLED) if shuffled and (control or out is None) else name
            made[place] = ask_all(
                loaded,
                questions,
                data,
                place,
                shuffled=shuffled,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                mode=mode,
            )
    first, *others = made.values()
    title = f"{first['checkpoint']} on {data.name}{' with media shuffled' if first['shuffled'] else ''}"
    show(table(title, scores_of(first), scores_of(others[0]) if others else None))
    if len(first["domains"]) > 1 and list(first["domains"]) != list(first["tasks"]):
        by = [scores_of(results, "domains") for results in made.values()]
        show(table("by domain", by[0], by[1] if others else None, "domain"))
    for place, results in made.items():
        _notes(results, place)
    return next(iter(made))


def ask_all(
    loaded: Loaded,
    questions: Sequence[Question],
    data: Path,
    out: Path,
    *,
    shuffled: bool = False,
    batch_size: int = 64,
    max_new_tokens: int = 32,
    mode: str = ANSWER,
) -> Json:
    """Asks, grades and writes; the content of results.json."""
    began = time.monotonic()
    asked, left_out = exchange(list(questions), SEED) if shuffled else (list(questions), [])
    answers = track(_answers(loaded, asked, batch_size, max_new_tokens, mode), "questions", len(asked))
    by_place = dict(answers)
    replies = [by_place[place] for place in range(len(asked))]
    graded = [grade(question, reply.text) for question, reply in zip(asked, replies, strict=True)]
    folder = data.parent.resolve()
    predictions = [_line(*one, folder) for one in zip(asked, replies, graded, strict=True)]
    results: Json = {
        "checkpoint": str(loaded.path),
        "step": loaded.step,
        "data": str(data.resolve()),
        "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
        "shuffled": shuffled,
        "left_out": left_out,
        "failed": [question.id for question, reply in zip(asked, replies, strict=True) if reply.finish == FAILED],
        "truncated": sum(reply.finish == LENGTH for reply in replies),
        "max_new_tokens": max_new_tokens,
        "mode": mode,
        **({"form": form_of(replies)} if mode != ANSWER else {}),
        "seconds": round(time.monotonic() - began, 3),
        **summarise(graded),
    }
    write(out, results, predictions)
    return results


def grade(question: Question, reply: str) -> Graded:
    return Graded(
        id=question.id,
        task=question.task,
        tier=question.tier,
        domain=question.domain,
        answer=question.answer,
        chance=question.chance,
        reply=reply,
        correct=right(question.domain, reply, question.answer),
    )


def _answers(
    loaded: Loaded, asked: Sequence[Question], batch_size: int, max_new_tokens: int, mode: str
) -> Iterator[tuple[int, Completion]]:
    """(place, completion) of each question as they come. A question whose media cannot be used is failed, and wrong."""
    prompts: list[Prompt] = []
    places: list[int] = []
    build = partial(loaded.prompts.build, thinking=mode == THINK, closed=mode == ANSWER)
    for place, question in enumerate(asked):
        try:
            prompts.append(build({"id": question.id, "messages": question.messages}))
            places.append(place)
        except SampleError as error:
            yield place, Completion((), "", FAILED, str(error))
    for number, completion in loaded.engine.stream(prompts, max_new_tokens, batch_size=batch_size):
        yield places[number], completion


def _line(question: Question, reply: Completion, graded: Graded, folder: Path) -> Json:
    """One line of predictions.jsonl."""
    return {
        "id": question.id,
        "task": question.task,
        "tier": question.tier,
        "domain": question.domain,
        "prompt": question.prompt,
        "media": [{kind: _relative(path, folder)} for kind, path in question.media],
        "choices": list(question.choices),
        "answer": question.answer,
        "reply": reply.text,
        "prediction": extract(reply.text),
        "correct": graded.correct,
        "tokens": len(reply.token_ids),
        "finish": reply.finish,
        **({"error": reply.error} if reply.error else {}),
    }


def _relative(path: str, folder: Path) -> str:
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path


def _default_out(checkpoint: Path, data: Path, mode: str) -> Path:
    """RUN_DIR/eval/<name of the file>, or beside a checkpoint that lies in no run."""
    name = data.stem if mode == ANSWER else f"{data.stem}-{mode}"
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    return run / "eval" / name


def _notes(results: Json, place: Path) -> None:
    if counted := results.get("form"):
        print(", ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in counted.items()))
    print(f"written to {place}", flush=True)
    if failed := results["failed"]:
        print(f"{len(failed)} questions could not be asked (media not usable) and count as wrong", file=sys.stderr)
    if left_out := results["left_out"]:
        print(f"{len(left_out)} questions have no partner to exchange media with and were left out", file=sys.stderr)

"""`glmv sample`: rejection sampling, a checkpoint's right answers as SFT data (the paper's iterative cold start).

A checkpoint, of RL say, answers each question several times. An answer is kept that is right by the metric of `glmv
eval`, well formed, and passes `glmv data lint`; equal ones once. What is written is what `glmv data make` reads.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.conversation import media_parts
from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.types import Json
from megatron_glmv.evaluate.dataset import Question, load_questions
from megatron_glmv.evaluate.form import ANSWER, THINK, check_mode, whole
from megatron_glmv.evaluate.lint import faults
from megatron_glmv.evaluate.metrics import exact_match
from megatron_glmv.inference.completion import STOP, Completion
from megatron_glmv.inference.load import load_for_inference
from megatron_glmv.inference.sampling import Sampling
from megatron_glmv.rl.rewards.extraction import BOX, take_apart
from megatron_glmv.rl.rewards.types import OPTIONAL


@dataclass(frozen=True)
class Options:
    """How it is sampled and what is kept."""

    samples: int = 4
    """Answers to each question."""
    keep: int = 1
    """Most of them that are kept."""
    least: float = 0.0
    most: float = 1.0
    """Share of right answers that a question needs to be kept: most=0.9 leaves out what the model always knows."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    mode: str = THINK
    max_new_tokens: int = 512
    batch_size: int = 64
    limit: int | None = None
    """Questions of each task."""

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if not 1 <= self.keep <= self.samples:
            raise ConfigError("--keep", self.keep, f"has to be from 1 to --samples = {self.samples}")
        if not 0 <= self.least <= self.most <= 1:
            raise ConfigError("--least", self.least, f"has to be from 0 to --most = {self.most}, that at most 1")


@dataclass(frozen=True)
class Summary:
    questions: int
    answers: int
    right: int
    kept: int
    """Lines written."""


def main(ckpt: Path, data: Path, out: Path, options: Options, tokenizer: Path | None = None) -> Summary:
    """Writes OUT (JSON Lines) and its media beside it in OUT's folder. Raises DataError, and what
    `load_for_inference` raises."""
    questions = load_questions(data, options.limit)
    with load_for_inference(ckpt, tokenizer) as loaded:
        build = partial(loaded.prompts.build, thinking=options.mode == THINK, closed=options.mode == ANSWER)
        try:
            prompts = [build({"id": q.id, "messages": q.messages}) for q in questions]
        except SampleError as error:
            raise DataError(error.key, error.reason) from error
        sampling = Sampling(options.temperature, options.top_p, options.seed)
        asked = [prompt for prompt in prompts for _ in range(options.samples)]
        replies = loaded.engine.generate(asked, options.max_new_tokens, sampling, batch_size=options.batch_size)
        template = loaded.prompts.files.data.template
    media = out.parent / f"{out.stem}-media"
    lines: list[Json] = []
    right_in_all = 0
    for number, question in enumerate(questions):
        own = replies[number * options.samples : (number + 1) * options.samples]
        right = [reply for reply in own if exact_match(whole(reply), question.answer)]
        right_in_all += len(right)
        share = len(right) / options.samples
        if options.least <= share <= options.most:
            lines += _kept(question, right, share, options, template)
    for line in lines:
        _bring_media(line, media)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return Summary(len(questions), len(replies), right_in_all, len(lines))


def _kept(question: Question, right: Sequence[Completion], share: float, options: Options, template: str) -> list[Json]:
    """The sound ones among right answers as SFT conversations; equal answers once, in the order they were drawn."""
    made: dict[str, Json] = {}
    for reply in right:
        parts = take_apart(whole(reply), OPTIONAL)
        if reply.finish != STOP or parts.fault or (options.mode == THINK) != bool(parts.thinking.strip()):
            continue
        said: Json = {"role": "assistant", "reasoning_content": parts.thinking.strip(), "content": parts.answer}
        line: Json = {
            "id": f"{question.id}-s{len(made)}",
            "task": question.task,
            "domain": question.domain,
            "answer": question.answer,
            "pass_rate": share,
            "thinking": options.mode == THINK,
            **({"verifiable": True} if BOX in parts.answer else {}),
            "messages": [*copy.deepcopy(question.messages), said],
        }
        if not any(faults(line, template)):
            made.setdefault(reply.text, line)
    return list(made.values())[: options.keep]


def _bring_media(line: Json, folder: Path) -> None:
    """Gives the media of a line a place beside the file (a hard link where it can be one), by relative paths."""
    for part in media_parts(line):
        source = Path(part[part["type"]])
        name = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16] + source.suffix
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / name
        if not target.exists():
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        part[part["type"]] = f"{folder.name}/{name}"


def describe(summary: Summary, out: Path) -> str:
    counted = asdict(summary)
    return f"{counted['right']} of {counted['answers']} answers to {counted['questions']} questions are right, " + (
        f"{counted['kept']} kept: {out}"
    )

"""The evaluation file: one question a line, as `glmv eval` reads it, with the media beside it and each written once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_glmv.data.synthetic.conversation import Sample
from megatron_glmv.data.types import Json

FILE, MEDIA = "eval.jsonl", "media"


def write_eval(directory: Path, samples: Iterable[Sample]) -> int:
    """Write `directory`/eval.jsonl and the media of the samples. Returns the number of lines.

    Each task is asked once about a sample: lines about one medium differ in their tasks.
    """
    (directory / MEDIA).mkdir(parents=True, exist_ok=True)
    count = 0
    with (directory / FILE).open("w", encoding="utf-8") as out:
        for sample in samples:
            for name, data in sample.media.items():
                (directory / MEDIA / f"{sample.key}.{name}").write_bytes(data)
            for line in eval_lines(sample):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
    return count


def eval_lines(sample: Sample) -> Iterator[Json]:
    """{"id", "task", "tier", "domain", "answer", "choices", "messages"}; the one message is the user's."""
    shown = [f"{MEDIA}/{sample.key}.{name}" for name in sample.media]
    first = {turn.task: turn for turn in reversed(sample.turns)}
    for task, turn in sorted(first.items()):
        yield {
            "id": f"{sample.key}-{task}",
            "task": task,
            "tier": turn.tier,
            "domain": sample.domain,
            "answer": turn.answer,
            "choices": list(turn.choices),
            "messages": [sample.question(turn, shown)],
        }

"""Rejection sampling with a real (random) model: what it says is made the right answer, or another one is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.answering import make_answering_run

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.make import make_shards
from megatron_glmv.evaluate.generate import main as generate
from megatron_glmv.evaluate.rejection import Options, main


def test_right_answers_become_sft_data_that_can_be_made_into_shards(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = make_answering_run(run)
    picture = run / "data" / "media" / "a.png"
    said = generate(checkpoint, image=[picture], prompt="Which colour?", max_new_tokens=6, temperature=0)

    def question(name: str, answer: str) -> dict[str, Any]:
        parts = [{"type": "image", "image": "data/media/a.png"}, {"type": "text", "text": "Which colour?"}]
        return {"id": name, "answer": answer, "domain": "d", "messages": [{"role": "user", "content": parts}]}

    asked = run / "asked.jsonl"
    asked.write_text("".join(json.dumps(question(*one)) + "\n" for one in (("yes", said.text), ("no", "never said"))))
    out = tmp_path / "sft" / "kept.jsonl"
    greedy = Options(samples=3, keep=2, temperature=0.0, mode="answer", max_new_tokens=6)
    done = main(checkpoint, asked, out, greedy)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    if said.finish == "stop":
        assert (done.questions, done.answers, done.right, done.kept) == (2, 6, 3, 1), "three equal answers are one"
        assert lines[0]["id"] == "yes-s0" and lines[0]["pass_rate"] == 1.0
        assert lines[0]["messages"][-1] == {"role": "assistant", "reasoning_content": "", "content": said.text}
        assert make_shards(tmp_path / "shards", jsonl=out).samples == 1
        assert main(checkpoint, asked, out, Options(samples=3, most=0.9, temperature=0.0, mode="answer")).kept == 0
    else:
        assert (done.right, done.kept) == (3, 0), "an answer that was cut is not kept, right or not"
    assert main(checkpoint, asked, out, Options(samples=1, temperature=0.0, max_new_tokens=6)).kept == 0, "no thought"


def test_options_that_mean_nothing_are_refused() -> None:
    for wrong in ({"keep": 5}, {"least": 0.9, "most": 0.1}, {"mode": "shout"}):
        with pytest.raises(ConfigError):
            Options(**wrong)  # type: ignore[arg-type]

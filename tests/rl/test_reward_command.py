"""`glmv reward`: a file in, a file out, and what is said about files that are none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_glmv.data.errors import DataError
from megatron_glmv.rl.rewards.file import main, read_items
from megatron_glmv.rl.rewards.types import JudgeOptions

LINES = [
    {
        "domain": "math",
        "response": "<think>t</think><|begin_of_box|>\\frac12<|end_of_box|>",
        "answer": "0.5",
        "id": "a",
    },
    {"domain": "ocr", "response": "<|begin_of_box|>abcd<|end_of_box|>", "answer": "abce"},
    {"domain": "chart", "response": "<|begin_of_box|>101<|end_of_box|>", "answer": "100", "tolerance": 0.001},
    {"domain": "colour", "response": "red", "answer": "red", "extra": {"box": "required"}},
    {"domain": "astrology", "response": "\ud800", "answer": None},
]


def test_the_command(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(map(json.dumps, LINES)) + "\n\n")
    code = "from megatron_glmv.cli import main; import sys; sys.argv[0] = 'glmv'; main(); "
    done = subprocess.run(
        [sys.executable, "-c", code, "reward", str(source), "--out", str(target), "--workers", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["reward"] for line in found] == [1.0, 0.75, 0.0, 0.0, 0.0]
    assert [line["verifier"] for line in found] == ["math", "ocr", "chart", "format", "none"]
    assert found[0].pop("id") == "a"
    assert all(set(line) == {"reward", "extracted", "verifier", "reason", "seconds"} for line in found)
    assert "no verifier" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "has to be an object"),
        ('{"domain": "math", "response": "x"}', "without 'answer'"),
        ('{"domain": 1, "response": "x", "answer": "y"}', "domain has to be text"),
        ('{"domain": "math", "response": null, "answer": "y"}', "response has to be text"),
        ('{"domain": "math", "response": "x", "answer": "y", "extra": 1}', "extra has to be an object"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(LINES[1]) + "\n" + line + "\n")
    with pytest.raises(DataError, match=f"in.jsonl:2: .*{said}"):
        list(read_items(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        main(tmp_path / "none.jsonl", None, JudgeOptions())

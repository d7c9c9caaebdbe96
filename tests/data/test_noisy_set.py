"""tools/make_noisy_set.py: as many wrong answers as asked for, each another choice of the question; the same twice."""

from __future__ import annotations

import json
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from helpers.tools import load_tool

from megatron_glmv.data.synthetic.conversation import make_sample
from megatron_glmv.data.synthetic.registry import FAMILIES
from megatron_glmv.data.synthetic.seeds import TRAIN


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_tool("make_noisy_set")


def test_wrong_answers_are_other_choices_and_as_many_as_asked_for(tool: Any) -> None:
    made = list(islice(tool.questions(["colour", "count"], 0.6, 7), 150))
    assert {turn.task for sample, _ in made for turn in sample.turns} == {"colour", "count"}
    for sample, is_wrong in made:
        (turn,) = sample.turns
        family, index = sample.key.rsplit("-", 1)
        (true,) = [t for t in make_sample(FAMILIES[family], 7, TRAIN, int(index)).turns if t.task == turn.task]
        assert turn.answer in true.choices and (turn.answer != true.answer) == is_wrong
    # 150 draws at 0.6: 90 wrong, standard deviation 6
    assert 66 <= sum(wrong for _, wrong in made) <= 114
    assert not any(wrong for _, wrong in islice(tool.questions(["colour"], 0.0, 7), 30))
    both = list(islice(tool.questions(["count"], 1.0, 7, clean=["colour"]), 40))
    assert {(sample.turns[0].task, is_wrong) for sample, is_wrong in both} == {("count", True), ("colour", False)}


def test_a_set_is_shards_that_training_reads_and_the_same_twice(tool: Any, tmp_path: Path) -> None:
    wrong = [tool.make(tmp_path / name, ["colour"], 12, 0.5, 3) for name in "ab"]
    assert wrong[0] == wrong[1] and (tmp_path / "a" / "index.json").exists()
    read = []
    for name in "ab":
        with tarfile.open(tmp_path / name / "shard-000000.tar") as tar:
            told = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
        read.append([t["messages"] for t in told])
    assert read[0] == read[1] and len(read[0]) == 12

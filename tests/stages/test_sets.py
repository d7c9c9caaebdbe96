"""The sets of the later stages: usable under both templates, as long as they say, made once, the same bytes again."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from megatron_glmv.config.load import compose
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.lengths import Layouts, measure
from megatron_glmv.data.stage_sets.domains import EASY, PREFIX, write_questions
from megatron_glmv.data.stage_sets.make import LATER, LONG, PRETRAIN, SFT, WEIGHTS, Recipe, make_one, make_set
from megatron_glmv.data.synthetic.demo import make_demo
from megatron_glmv.data.synthetic.domains.lattice import is_held_out
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.evaluate.dataset import load_questions

BUDGET = 1024


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    make_demo(directory, train_images=40, train_videos=8, train_text=8, eval_items=1, workers=0)
    make_set(directory, Recipe(PRETRAIN, 60), workers=0)
    make_set(directory, Recipe(LONG, 200, BUDGET), workers=0)
    make_set(directory, Recipe(SFT, 60), workers=0)
    return directory


@pytest.mark.parametrize("stage", [PRETRAIN, LONG, SFT])
@pytest.mark.parametrize("model", ["tiny_glm45v", "tiny_glm41v"])
def test_every_sample_can_be_trained_under_both_templates(demo: Path, stage: str, model: str) -> None:
    experiment = {PRETRAIN: "tiny_pretrain", LONG: "tiny_longcontext", SFT: "tiny_sft"}[stage]
    config = compose([f"experiment={experiment}", f"model={model}"])
    for split in ("train", "val"):
        data = ShardDataset(demo / stage / split)
        tokenizer = Tokenizer.load(demo / stage / "tokenizer")
        lengths = measure(Layouts(data, tokenizer, config.data, config.model.vision))
        assert lengths.errors == {} and lengths.trained.min() > 0
        assert lengths.tokens.max() <= BUDGET
        if stage == LONG and split == "train":
            assert lengths.tokens.max() > BUDGET / 2
        if split == "train":
            later = {kind.removeprefix(PREFIX) for kind in LATER} if stage == PRETRAIN else set()
            more = {PRETRAIN: set(), LONG: {"document", "pages", "video"}, SFT: {"video"}}[stage]
            domains = {data.entry(i).domain for i in range(len(data))}
            assert domains == {"image", "text"} | (set(EASY) - later) | more


def test_a_finished_set_is_kept_and_another_recipe_makes_it_anew(demo: Path, tmp_path: Path) -> None:
    shard = demo / SFT / "train" / "shard-000000.tar"
    before, inode = shard.read_bytes(), shard.stat().st_ino
    make_set(demo, Recipe(SFT, 60), workers=0)
    assert shard.stat().st_ino == inode
    make_set(demo, Recipe(SFT, 61, seed=1), workers=0)
    assert shard.read_bytes() != before
    make_set(demo, Recipe(SFT, 60), workers=0)
    assert shard.read_bytes() == before
    with pytest.raises(DataError, match="make the demo set first"):
        make_set(tmp_path, Recipe(SFT, 60), workers=0)


def test_a_domain_is_shown_in_every_stage_with_other_scenes_and_asked_in_templates_of_its_own(tmp_path: Path) -> None:
    for stage, weights in WEIGHTS.items():
        assert {f"{PREFIX}{name}" for name in EASY} - set(weights) == (set(LATER) if stage == PRETRAIN else set())
    media = [tuple(make_one(Recipe(stage, 1), "train", ("easy-grounding", 0))[2].values()) for stage in WEIGHTS]
    assert len(set(media)) == len(media)
    keys, conversations, _ = zip(
        *(make_one(Recipe(SFT, 1), "train", ("easy-chart", index)) for index in range(8)), strict=True
    )
    assert len(set(keys)) == 8 and {True, False} == {one["thinking"] for one in conversations}
    for one in conversations:
        thoughts = [m["reasoning_content"] for m in one["messages"] if m["role"] == "assistant"]
        assert (len(thoughts) == 1 and thoughts[0]) if one["thinking"] else (len(thoughts) > 1 and not any(thoughts))
    assert write_questions(tmp_path / "held", 3) == 3 * len(EASY)
    asked = load_questions(tmp_path / "held" / "questions.jsonl")
    assert Counter(one.domain for one in asked) == dict.fromkeys(EASY, 3)
    line = json.loads((tmp_path / "held" / "questions.jsonl").read_text().splitlines()[0])
    assert is_held_out(tuple(line["template"]["wording"])) and is_held_out(tuple(line["template"]["style"]))
    made = (tmp_path / "held" / "questions.jsonl").stat().st_mtime_ns
    assert write_questions(tmp_path / "held", 3) == 3 * len(EASY)
    assert (tmp_path / "held" / "questions.jsonl").stat().st_mtime_ns == made
    write_questions(tmp_path / "held", 2)
    assert len(load_questions(tmp_path / "held" / "questions.jsonl")) == 2 * len(EASY)


def test_splits_and_stages_share_no_scene(demo: Path) -> None:
    recipe = Recipe(SFT, 60)
    first = {split: make_one(recipe, split, ("still", 0))[2] for split in ("train", "val")}
    assert first["train"] != first["val"]
    assert make_one(Recipe(LONG, 60), "train", ("still", 0))[2] != first["train"]

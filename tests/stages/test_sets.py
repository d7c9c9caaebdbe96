"""The sets of the later stages: usable under both templates, as long as they say, made once, the same bytes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_glmv.config.load import compose
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.lengths import Layouts, measure
from megatron_glmv.data.stage_sets.make import LONG, SFT, Recipe, make_one, make_set
from megatron_glmv.data.synthetic.demo import make_demo
from megatron_glmv.data.tokenizer import Tokenizer

BUDGET = 1024


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    make_demo(directory, train_images=40, train_videos=8, train_text=8, eval_items=1, workers=0)
    make_set(directory, Recipe(LONG, 200, BUDGET), workers=0)
    make_set(directory, Recipe(SFT, 60), workers=0)
    return directory


@pytest.mark.parametrize("stage", [LONG, SFT])
@pytest.mark.parametrize("model", ["tiny_glm45v", "tiny_glm41v"])
def test_every_sample_can_be_trained_under_both_templates(demo: Path, stage: str, model: str) -> None:
    experiment = {LONG: "tiny_longcontext", SFT: "tiny_sft"}[stage]
    config = compose([f"experiment={experiment}", f"model={model}"])
    for split in ("train", "val"):
        data = ShardDataset(demo / stage / split)
        tokenizer = Tokenizer.load(demo / stage / "tokenizer")
        lengths = measure(Layouts(data, tokenizer, config.data, config.model.vision))
        assert lengths.errors == {} and lengths.trained.min() > 0
        assert lengths.tokens.max() <= BUDGET
        if stage == LONG and split == "train":
            assert lengths.tokens.max() > BUDGET / 2
            assert {"document", "pages", "image", "video", "text"} == {data.entry(i).domain for i in range(len(data))}


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


def test_splits_and_stages_share_no_scene(demo: Path) -> None:
    recipe = Recipe(SFT, 60)
    first = {split: make_one(recipe, split, ("still", 0))[2] for split in ("train", "val")}
    assert first["train"] != first["val"]
    assert make_one(Recipe(LONG, 60), "train", ("still", 0))[2] != first["train"]

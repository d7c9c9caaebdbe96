"""`glmv data stats` and `glmv data show`, as a user runs them, against what a pack of training holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from data import small_set
from data.small_set import TRUNCATED, UNREADABLE
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from megatron_glmv.cli.app import app
from megatron_glmv.data.batches import BatchMaker, Pack
from megatron_glmv.data.commands import config_of, open_layouts
from megatron_glmv.data.histogram import as_text, bins
from megatron_glmv.data.patches import normalise
from megatron_glmv.data.video_index import video_facts

OPTIONS = ["data.pack_tokens=512"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("set")
    small_set.make(directory)
    return directory / "shards"


def glmv(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "200"})


def test_stats_count_what_is_there_by_domain(shards: Path, tmp_path: Path) -> None:
    layouts = open_layouts(shards, config_of(OPTIONS))
    done = glmv("stats", str(shards), *OPTIONS, "--pack", "--png", str(tmp_path / "made" / "h.png"))
    assert done.exit_code == 0, done.output
    table = [re.findall(r"[^│\s]+", line) for line in done.output.splitlines() if "│" in line]
    rows = {row[0]: row for row in table}
    assert rows.keys() == {"image", "video", "text", "all"}
    assert rows["image"][1:4] == ["23", "1", "23"], "samples, unusable, media"
    kept = [layouts(i) for i in range(len(layouts.dataset)) if layouts.dataset.entry(i).key != UNREADABLE]
    assert rows["all"][4] == f"{sum(map(len, kept)):,}"
    assert rows["all"][5] == f"{sum(len(layout.visual_positions) for layout in kept):,}"
    assert rows["video"][7] == str(sum(len(p.frames) for layout in kept for p in layout.plans))
    assert "unusable: 0.png: not a readable image" in done.output
    assert re.search(r"best fit +fill 0\.\d{4}", done.output)
    assert Image.open(tmp_path / "made" / "h.png").size[0] == 720


def test_the_preset_packs_as_promised() -> None:
    done = glmv("stats", "--preset")
    assert done.exit_code == 0, done.output
    fills = [float(x) for x in re.findall(r"best fit +fill ([\d.]+)", done.output)]
    even = [float(x) for x in re.findall(r"max/mean ([\d.]+) by cost", done.output)]
    assert len(fills) == 2 and min(fills) >= 0.985
    assert len(even) == 4 and max(even) <= 1.03
    assert done.output.count("round-robin") == 4 and done.output.count("naive") == 2


@pytest.mark.parametrize("key", ["image-001", "clip-001", "text-003"])
def test_a_sample_is_shown_and_saved_as_a_pack_has_it(shards: Path, tmp_path: Path, key: str) -> None:
    config = config_of(OPTIONS)
    layouts = open_layouts(shards, config)
    i = layouts.dataset.find(key)
    shard = shards / layouts.dataset.entry(i).shard
    file = tmp_path / "made" / "sample.safetensors"
    done = glmv("show", str(shard), key, *OPTIONS, "--save", str(file))
    assert done.exit_code == 0, done.output
    saved = load_file(file)
    pack, failures = BatchMaker(layouts).make(Pack((i,), (512,)))
    assert not failures
    n = len(saved["input_ids"])
    for name in ("input_ids", "labels", "loss_weights"):
        assert torch.equal(saved[name], getattr(pack, name)[:n]), name
    assert torch.equal(saved["position_ids"], pack.position_ids[:, :n])
    assert torch.equal(saved["pixel_values"], normalise(pack.pixel_values, config.model.vision))
    assert torch.equal(torch.cat([saved["image_grid_thw"], saved["video_grid_thw"]]), pack.grids)
    assert f"{n} tokens, {int((pack.loss_weights > 0).sum())} trained" in done.output
    if key == "clip-001":
        taken = layouts(i).plans[0]
        facts = video_facts("v", layouts.dataset.member(i, "0.webm"))
        assert np.allclose(saved["timestamps"], facts.frame_seconds()[list(taken.frames)])
        assert f"frames {taken.frames[0]}@0s" in done.output
        assert "by dali" in done.output
    assert f"{n - 1:5d}  " in done.output, "the last token is listed"
    assert "-> '<|user|>'" in done.output, "so is what ends the answer"


def test_thinking_is_kept_behind_the_last_question_and_dropped_before(tmp_path: Path) -> None:
    from megatron_glmv.data.index import build_index
    from megatron_glmv.data.shards import ShardWriter
    from megatron_glmv.data.tokenizer import train_tokenizer

    thought = "<think>{}</think>{}"
    turns = [("One?", thought.format("early", "1")), ("Two?", thought.format("late", "2"))]
    with ShardWriter(tmp_path / "shards") as writer:
        writer.add("s", {"id": "s", **small_set.ask("", "", turns)}, {})
    build_index(tmp_path / "shards")
    train_tokenizer(["One? early late Two?"], tmp_path / "tokenizer", 320)
    done = glmv("show", str(tmp_path / "shards"), "s")
    assert done.exit_code == 0, done.output
    assert "<think></think>" in done.output and "early" not in done.output
    assert "<think>late</think>" in done.output


def test_what_cannot_be_shown_says_why(shards: Path, tmp_path: Path) -> None:
    for key, words in (("nobody", "no sample of this key"), (UNREADABLE, "not a readable image")):
        done = glmv("show", str(shards), key)
        assert getattr(done.exception, "exit_code", None) == 65
        assert words in str(done.exception)
    done = glmv("show", str(shards), TRUNCATED, "--save", str(tmp_path / "x"))
    assert "does not decode" in done.output
    assert getattr(done.exception, "exit_code", None) == 65
    assert not (tmp_path / "x").exists()
    done = glmv("show", str(shards / "shard-000000.tar"), "text-011")
    assert "not in shard-000000.tar" in str(done.exception)


def test_a_histogram_counts_every_value_once() -> None:
    values = np.random.default_rng(0).lognormal(5, 2, 1000).astype(np.int64)
    edges, counts = bins(values)
    assert counts.sum() == (values > 0).sum()
    assert edges[0] <= values[values > 0].min() and edges[-1] > values.max()
    assert len(as_text("t", values)) == len(counts) + 1
    assert as_text("none", np.zeros(3, dtype=np.int64))[0] == "none"

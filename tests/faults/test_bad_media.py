"""Runs on data of which one sample in twenty is bad, each in its own way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data.media_files import FAST, clip, encoded
from data.small_set import ask, png
from faults.training import Training, metrics, run, samples
from PIL import Image

from megatron_glmv.data.index import build_index
from megatron_glmv.data.quarantine import read_ledger
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.tokenizer import train_tokenizer

pytestmark = pytest.mark.slow

COUNT = 100
CLIP = clip("webm", codec="libvpx-vp9", frames=24, options=FAST)


def bad_crc() -> bytes:
    data = bytearray(png(7))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    return bytes(data)


def cut_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (84, 84, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", quality=95)
    return data[: len(data) // 2]


BAD: dict[int, tuple[str, bytes, str]] = {
    3: ("image", cut_jpeg(), "image does not decode"),
    21: ("image", b"", "not a readable image"),
    42: ("image", bad_crc(), "image does not decode"),
    63: ("video", CLIP[: len(CLIP) * 6 // 10], "ended prematurely"),
    84: ("video", b"\0\0\0\x18ftypmp42" + bytes(400), "Invalid data"),
}
"""Number of the sample: kind, bytes, and words of the reason. Two of them are found at decoding only."""
KEYS = {f"s-{i:03d}": words for i, (_, _, words) in BAD.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bad")
    with ShardWriter(directory / "shards", samples_per_shard=40) as writer:
        for i in range(COUNT):
            kind, media, _ = BAD.get(i, ("image", png(i), ""))
            conversation = {"id": f"s-{i:03d}", **ask(kind, "0", [("Which colour?", ["red", "green", "blue"][i % 3])])}
            writer.add(f"s-{i:03d}", conversation, {"0": media})
    build_index(directory / "shards")
    train_tokenizer(["Which colour? red green blue"] * 9, directory / "tokenizer", 320)
    return directory / "shards"


OPTIONS = ("data.quarantine_budget=0.1", "data.workers=1")


def test_it_names_exactly_them_and_its_losses_do_not_depend_on_the_replicas(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "one", *OPTIONS)
    run(data, tmp_path / "two", *OPTIONS, "parallel.data=2")
    seen = {key for step in samples(tmp_path / "one") for key in step["ids"]}
    assert {"s-003", "s-042"} <= seen, "the run met those that fail at decoding"
    for name in ("one", "two"):
        ledger = read_ledger(tmp_path / name / "quarantine.jsonl")
        assert sorted(bad.key for bad in ledger) == sorted(KEYS)
        for bad in ledger:
            assert KEYS[bad.key] in bad.reason
    assert samples(tmp_path / "one") == samples(tmp_path / "two")
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert (two["tokens"], two["samples"]) == (one["tokens"], one["samples"])
    assert len(metrics(tmp_path / "one")) == 10


def test_over_the_budget_it_ends_as_a_data_error(data: Path, tmp_path: Path) -> None:
    code, output = Training(data, tmp_path / "run", "data.quarantine_budget=0.01").finish()
    assert code == 65, output
    assert "quarantine_budget=0.01 allows 1" in output
    assert "Traceback" not in output


def test_moved_from_four_replicas_to_context_and_tensor_ranks_to_three_replicas_it_is_the_unbroken_run(
    data: Path, tmp_path: Path
) -> None:
    """The same ids in every global batch, losses within 1e-5, and the same ledger: bad samples are among them."""
    options = (*OPTIONS, "train.global_batch=12", "train.steps=6", "checkpoint.every=2")
    run(data, tmp_path / "whole", *options)
    moved = tmp_path / "moved"
    run(data, moved, *options, "parallel.data=4", "train.stop_step=2")
    assert "from step 2" in run(data, moved, *options, "parallel.context=2", "parallel.tensor=2", "train.stop_step=4")
    assert "from step 4" in run(data, moved, *options, "parallel.data=3")
    assert samples(moved) == samples(tmp_path / "whole")
    assert [record["step"] for record in metrics(moved)] == list(range(1, 7))
    for ours, theirs in zip(metrics(moved), metrics(tmp_path / "whole"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ledgers = [
        {bad.key for bad in read_ledger(run_dir / "quarantine.jsonl")} for run_dir in (moved, tmp_path / "whole")
    ]
    assert ledgers[0] == ledgers[1] == set(KEYS)

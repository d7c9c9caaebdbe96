"""A run whose frozen parts and global batch change at steps, as a user starts it, whole and in pieces."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from data.small_set import make
from faults.training import metrics, run

from megatron_glmv.checkpoint.reader import OPTIMIZER, differing_tensors, open_checkpoint
from megatron_glmv.model.freeze import part_of

pytestmark = pytest.mark.slow

OPTIONS = (
    "optim=muon", "optim.warmup_steps=2", "train.steps=6", "train.global_batch=4", "train.batch_until={2:1,4:2}",
    "stage.freeze_until={vision:3}", "checkpoint.every=2", "checkpoint.keep=9", "data.workers=1",
)  # fmt: skip


def ids(run_dir: Path) -> list[list[str]]:
    return [json.loads(line)["ids"] for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def test_whole_and_in_pieces_it_is_the_same_run_over_the_same_order(tmp_path: Path) -> None:
    make(tmp_path / "set", images=12, clips=1, texts=24, sound=True)
    data = tmp_path / "set" / "shards"
    whole, pieces, constant = (tmp_path / name for name in ("whole", "pieces", "constant"))
    run(data, whole, *OPTIONS)
    for stop in (3, 5, 6):  # at the thaw, and inside a width
        run(data, pieces, *OPTIONS, f"train.stop_step={stop}")
    assert [record["step"] for record in metrics(whole)] == [1, 2, 3, 4, 5, 6]
    assert metrics(pieces) == metrics(whole) and ids(pieces) == ids(whole)
    checkpoints = [open_checkpoint(whole / "checkpoints" / f"step_{step}") for step in (2, 3, 4, 6)]
    assert differing_tensors(open_checkpoint(pieces / "checkpoints" / "step_6"), checkpoints[-1]) == []
    vision = [name for name in checkpoints[0].weights if part_of(name) == "vision"]
    changed = [[not a.tensor(n).equal(b.tensor(n)) for n in vision] for a, b in itertools.pairwise(checkpoints)]
    assert not any(changed[0]) and sum(changed[1]) > len(vision) // 2 and sum(changed[2]) > len(vision) // 2
    states = [any(n.startswith(f"{OPTIMIZER}exp_avg.vision.patch") for n in c.tensors) for c in checkpoints]
    assert states == [False, False, True, True]
    run(data, constant, "train.steps=8", "train.global_batch=2", "checkpoint.every=0")
    flat = [key for step in ids(whole) for key in step]
    assert [key for step in ids(constant) for key in step][: len(flat)] == flat[: sum(map(len, ids(constant)))]
    widths = [record["samples"] for record in metrics(whole)]
    assert widths[1] < widths[3] - widths[1] < widths[5] - widths[3], "1, 1, 2, 2, 4 and 4 packs"

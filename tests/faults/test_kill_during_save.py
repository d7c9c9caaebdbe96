"""A process that dies while it saves costs that checkpoint, and nothing else.

Dying is SIGKILL at the points of checkpoint/store.py, in one of two ranks that train for real. That it dies between any
two touches of the file system is tests/unit/test_checkpoint_store.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dist.checkpoint_job import Leg, Outcome, live
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint

CONFIG = tiny.config(data=2, expert=2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """Three steps without a fault, checkpoints of 1, 2 and 3 each in a root of their own."""
    root = tmp_path_factory.mktemp("reference")
    outcome = run_ranks(live, 2, Leg(CONFIG, until=3, save=root, save_at=(1, 2, 3), keep=3))[0]
    return root, outcome


@pytest.mark.parametrize(
    "point, left, resumed_at",
    [
        ("shard_written", [1], 1),
        ("shards_written", [1], 1),
        ("before_manifest", [1], 1),
        ("manifest_tmp", [1], 1),
        ("before_rename", [1], 1),
        ("between_renames", [1], 2),  # the replaced checkpoint of step 2 is put back
        ("before_prune", [1, 2], 2),
    ],
)
def test_the_newest_whole_checkpoint_is_resumed_bit_by_bit(
    reference: tuple[Path, Outcome], tmp_path: Path, point: str, left: list[int], resumed_at: int
) -> None:
    root, marker = tmp_path / "checkpoints", tmp_path / "fired"
    shutil.copytree(reference[0] / "step_1", root / "step_1")
    twice = (2, 2) if point == "between_renames" else (2,)
    with pytest.raises(RuntimeError):
        run_ranks(live, 2, Leg(CONFIG, load=root, until=2, save=root, save_at=twice, fault=f"{point}@2", marker=marker))
    assert marker.read_text() == point, "the fault did not fire"
    assert store.step_directories(root) == left
    for step in left:
        assert open_checkpoint(root / f"step_{step}", verify=True).manifest.step == step

    resumed = run_ranks(live, 2, Leg(CONFIG, load=root, until=3, save=root, save_at=(3,)))[0]
    assert resumed.resumed_at == resumed_at and resumed.warnings == []
    assert resumed.history == reference[1].history[resumed_at:]
    assert differing_tensors(open_checkpoint(root, verify=True), open_checkpoint(reference[0])) == []
    expected = {f"step_{step}" for step in ([1, 3] if resumed_at == 1 else [2, 3])}
    assert {path.name for path in root.iterdir()} == expected, "nothing is left of the save that died"

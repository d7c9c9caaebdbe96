"""Runs that were killed, moved or damaged, started again by the same command.

The reference run is never touched by a fault, and each test shows that its fault happened.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from data.small_set import make
from faults.training import Training, alive, metrics, run, samples

from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint

pytestmark = pytest.mark.slow

LAYOUT = ("parallel.data=2", "parallel.expert=2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("set")
    make(directory, images=24, clips=2, texts=24, sound=True)
    return directory / "shards"


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps without a fault, checkpoints of 5 and 10."""
    directory = tmp_path_factory.mktemp("reference")
    run(data, directory, *LAYOUT)
    assert [record["step"] for record in metrics(directory)] == list(range(1, 11))
    assert store.committed(directory / "checkpoints") == [5, 10]
    return directory


def copy(run_dir: Path, target: Path, steps: list[int]) -> Path:
    shutil.copytree(run_dir, target)
    for step in store.committed(target / "checkpoints"):
        if step not in steps:
            shutil.rmtree(target / "checkpoints" / f"step_{step}")
    return target


def test_killed_and_started_again_it_is_the_run_that_was_never_killed(
    data: Path, reference: Path, tmp_path: Path
) -> None:
    victim = Training(data, tmp_path / "run", *LAYOUT)
    victim.wait_for_step(7)
    pids = victim.rank_pids()
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    code, output = victim.finish(timeout=30)
    assert code != 0 and "rank 1 was killed by SIGKILL" in output
    assert time.monotonic() - killed <= 15 and alive(pids) == []
    assert store.committed(tmp_path / "run" / "checkpoints") == [5], "it was killed between two checkpoints"

    output = run(data, tmp_path / "run", *LAYOUT)
    assert "from step 5" in output
    assert metrics(tmp_path / "run") == metrics(reference), "to the last digit"
    assert samples(tmp_path / "run") == samples(reference)
    ours, theirs = (open_checkpoint(directory, verify=True) for directory in (tmp_path / "run", reference))
    assert ours.manifest.step == theirs.manifest.step == 10
    assert differing_tensors(ours, theirs) == [] and ours.state == theirs.state


@pytest.mark.parametrize("layout", ["parallel.tensor=2", "parallel.context=2"])
def test_on_another_layout_it_sees_the_same_samples_and_nearly_the_same_losses(
    data: Path, reference: Path, layout: str, tmp_path: Path
) -> None:
    moved = copy(reference, tmp_path / "run", [5])
    assert "from step 5" in run(data, moved, layout)
    assert samples(moved) == samples(reference)
    ours, theirs = metrics(moved), metrics(reference)
    assert ours[:5] == theirs[:5]
    for mine, expected in zip(ours[5:], theirs[5:], strict=True):
        assert mine["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
        same = {"step", "lr", "tokens", "samples"}
        assert {n: mine[n] for n in same} == {n: expected[n] for n in same}


def test_a_damaged_checkpoint_costs_its_steps_and_damaged_ones_alone_stop_the_run(
    data: Path, reference: Path, tmp_path: Path
) -> None:
    damaged = copy(reference, tmp_path / "run", [5, 10])
    flip_bit(damaged / "checkpoints" / "step_10" / "__1_0.distcp")
    output = run(data, damaged, *LAYOUT)
    assert output.count("is broken") == 1 and "__1_0.distcp does not have the sha256" in output
    assert "from step 5" in output
    assert metrics(damaged) == metrics(reference)
    sound = open_checkpoint(damaged / "checkpoints" / "step_10", verify=True)
    assert differing_tensors(sound, open_checkpoint(reference)) == []

    flip_bit(damaged / "checkpoints" / "step_10" / "__0_0.distcp")
    manifest = damaged / "checkpoints" / "step_5" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    before = (damaged / "metrics.jsonl").read_bytes()
    code, output = Training(data, damaged, *LAYOUT).finish()
    assert code == 77, output
    assert "step_10" in output and "step_5" in output and "Traceback" not in output
    assert (damaged / "metrics.jsonl").read_bytes() == before, "no step was trained"
    assert store.step_directories(damaged / "checkpoints") == [5, 10]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

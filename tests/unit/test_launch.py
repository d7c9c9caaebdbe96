"""Local ranks: how they end when one of them ends badly, and how a launcher's ranks are recognised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from helpers.ranks import PRELOAD, run_ranks

from megatron_glmv.parallel.launch import RankContext, RankFailed, detect, first_host, launch

PATIENCE_S = 20.0
"""What a loaded machine may take to end ranks; they would otherwise sleep for ten minutes."""


class Refused(RuntimeError):
    exit_code = 64


def _others_sleep(failing: int, how: str, folder: Path, context: RankContext) -> None:
    (folder / str(context.rank)).write_text(str(os.getpid()))
    if context.rank != failing:
        time.sleep(600)
    while len(list(folder.iterdir())) < context.world:  # all have started
        time.sleep(0.01)
    if how == "exit":
        sys.exit(77)
    if how == "refuse":
        raise Refused("no such option")
    if how == "crash":
        raise ZeroDivisionError("in the middle of a step")
    os.kill(os.getpid(), signal.SIGKILL)


def _gone(folder: Path) -> bool:
    """Whether none of the ranks that left their id is running (a zombie has ended)."""
    running = []
    for file in folder.iterdir():
        try:
            if psutil.Process(int(file.read_text())).status() != psutil.STATUS_ZOMBIE:
                running.append(file.name)
        except psutil.NoSuchProcess:
            continue
    return not running


@pytest.mark.parametrize(
    "how, code, says",
    [
        ("exit", 77, "rank 1 ended with exit code 77"),
        ("refuse", 64, "rank 1 ended with exit code 64: no such option"),
        ("crash", 1, "ZeroDivisionError: in the middle of a step"),
        ("kill", 1, "rank 1 was killed by SIGKILL"),
    ],
)
def test_one_rank_that_ends_badly_ends_the_others(tmp_path: Path, how: str, code: int, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(RankFailed, match=says) as caught:
        launch(partial(_others_sleep, 1, how, tmp_path), 3, preload=PRELOAD)
    assert (caught.value.rank, caught.value.exit_code) == (1, code)
    assert time.monotonic() - began < PATIENCE_S
    assert len(list(tmp_path.iterdir())) == 3
    assert _gone(tmp_path)


def _place(context: RankContext) -> tuple[int, int, int]:
    return context.rank, context.world, context.local_rank


def test_results_come_back_by_rank() -> None:
    assert launch(_place, 3, preload=PRELOAD) == [(0, 3, 0), (1, 3, 1), (2, 3, 2)]


def _sum(number: int) -> int:
    import torch

    value = torch.tensor(number + torch.distributed.get_rank())
    torch.distributed.all_reduce(value)
    return int(value)


def test_launches_side_by_side_do_not_meet() -> None:
    """Two worlds at the same time on one machine: each meets at a file of its own, there is no port to share."""
    import threading

    found: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: run_ranks(_sum, 2, n)})) for n in (10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {10: [21, 21], 20: [41, 41]}


PARENT = """
import pathlib, sys
from functools import partial
from megatron_glmv.parallel.launch import launch
from unit.test_launch import _others_sleep
if __name__ == "__main__":
    launch(partial(_others_sleep, -1, "", pathlib.Path(sys.argv[1])), 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_killed_launcher_leaves_no_ranks(tmp_path: Path, number: signal.Signals) -> None:
    """By SIGKILL it cannot tell them, but a pipe that only it holds open is closed. SIGTERM it hands on."""
    script, folder = tmp_path / "parent.py", tmp_path / "ranks"
    script.write_text(PARENT)
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(folder)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len([f for f in folder.iterdir() if f.read_text()]) < 2:
            assert time.monotonic() < deadline and parent.poll() is None, "the ranks did not start"
            time.sleep(0.05)
        assert not _gone(folder)
        os.kill(parent.pid, number)
        assert parent.wait(PATIENCE_S) != 0
    finally:
        parent.kill()
    deadline = time.monotonic() + PATIENCE_S
    while not _gone(folder):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.05)


LAUNCHER_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [*LAUNCHER_KEYS, *(key for key in os.environ if key.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_launcher_there_is_no_rank(clean: pytest.MonkeyPatch) -> None:
    assert detect() is None
    clean.setenv("RANK", "0")  # a lone variable is no launcher
    assert detect() is None


def test_torchrun_is_recognised(clean: pytest.MonkeyPatch) -> None:
    for name, value in zip(LAUNCHER_KEYS, ("5", "8", "1", "node7", "29500"), strict=True):
        clean.setenv(name, value)
    assert detect() == RankContext(rank=5, world=8, local_rank=1, init_method="env://")


STEP = {
    "SLURM_PROCID": "9",
    "SLURM_NTASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[012-013]",
    "SLURM_NODELIST": "gpu[007,012-013]",
}


def test_srun_is_recognised(clean: pytest.MonkeyPatch) -> None:
    """The meeting point is the first host of the step, not of the allocation; jobs on one host get different ports."""
    for name, value in STEP.items():
        clean.setenv(name, value)
    assert detect() == RankContext(9, 16, 1, f"tcp://gpu012:{20000 + 123456 % 20000}")
    clean.setenv("SLURM_JOB_ID", "123457")
    assert detect() == RankContext(9, 16, 1, f"tcp://gpu012:{20000 + 123457 % 20000}")
    clean.setenv("MASTER_ADDR", "10.0.0.1")
    clean.setenv("MASTER_PORT", "1234")
    assert detect() == RankContext(9, 16, 1, "tcp://10.0.0.1:1234")


@pytest.mark.parametrize("missing", ["SLURM_STEP_ID", "SLURM_PROCID"])
def test_a_shell_inside_an_allocation_is_no_rank(clean: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in STEP.items():
        if name != missing:
            clean.setenv(name, value)
    assert detect() is None


@pytest.mark.parametrize(
    "nodes, first",
    [("a1", "a1"), ("a1,a2", "a1"), ("a[003-007,9],b1", "a003"), ("rack-2-n[1,4]", "rack-2-n1"), ("n[5]", "n5")],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_no_first_host_in_an_empty_list() -> None:
    with pytest.raises(ValueError, match="no host in the Slurm node list ''"):
        first_host("")


def _crash() -> None:
    raise ZeroDivisionError("in the middle of a step")


def test_a_rank_that_may_have_run_changed_source_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a merge or an edit during a run of the suite looks like a test that fails once in a while."""
    for moment, changed in ((0.0, True), (time.time() + 3600, False)):
        monkeypatch.setattr("helpers.ranks.STARTED", moment)
        with pytest.raises(RankFailed, match="ZeroDivisionError") as caught:
            run_ranks(_crash, 1)
        assert (
            any("was changed while the tests ran" in note for note in getattr(caught.value, "__notes__", [])) == changed
        )

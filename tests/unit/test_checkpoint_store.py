"""What has a checkpoint's name is a whole checkpoint, whenever the process that writes, replaces or deletes it dies.

The death is real: a forked child kills itself by SIGKILL before its n-th touch of the file system, for every n until
it gets through. The touches are those that Python's audit hook reports (open, mkdir, rename, remove, rmdir, chmod), and
fsync.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from unit.checkpoint_files import write_checkpoint

from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.manifest import read_manifest
from megatron_glmv.checkpoint.reader import open_checkpoint

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


def dies_before_touch(number: int, root: Path, action: Callable[[], object]) -> bool:
    """Runs `action` in a child that dies before its `number`-th touch below `root`; False if it got through before."""
    child = os.fork()
    if child == 0:
        left = number
        fsync = os.fsync

        def touched() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            by_descriptor = arguments[-1] not in (None, -1)  # rmtree names files relative to an open directory
            if event in TOUCHES and (by_descriptor or str(arguments[0]).startswith(str(root))):
                touched()

        def counted_fsync(descriptor: int) -> None:
            touched()
            fsync(descriptor)

        try:
            os.fsync = counted_fsync
            sys.addaudithook(hook)
            action()
        except BaseException:  # the parent must not run on in the child
            os._exit(99)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def whole(root: Path) -> list[int]:
    """All directories with a checkpoint's name; fails unless each is a whole checkpoint of that step."""
    steps = store.step_directories(root)
    for step in steps:
        assert open_checkpoint(store.directory_of(root, step), verify=True).manifest.step == step
    return steps


def every_death(tmp_path: Path, prepare: Callable[[Path], None], action: Callable[[Path], None]) -> list[Path]:
    """The roots left behind by a death before each touch of `action`, until it gets through."""
    roots: list[Path] = []
    while True:
        root = tmp_path / str(len(roots))
        root.mkdir()
        prepare(root)
        if not dies_before_touch(len(roots) + 1, root, lambda root=root: action(root)):  # type: ignore[misc]
            assert len(roots) > 10, "hardly anything was interrupted"
            return roots
        roots.append(root)


def test_a_death_while_saving_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    def save_20(root: Path) -> None:
        write_checkpoint(root, 20, seed=2)
        store.prune(root, keep=1)

    outcomes = set()
    for root in every_death(tmp_path, lambda root: write_checkpoint(root, 10) and None, save_20):
        left = whole(root)
        assert left in ([10], [10, 20], [20])
        outcomes.add(tuple(left))
        save_20(root)
        assert sorted(path.name for path in root.iterdir()) == ["step_20"], "the next save leaves no orphans"
        assert whole(root) == [20]
    assert outcomes == {(10,), (10, 20), (20,)}


def test_a_death_while_replacing_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    outcomes = set()
    for root in every_death(
        tmp_path,
        lambda root: write_checkpoint(root, 20, seed=1) and None,
        lambda root: write_checkpoint(root, 20, seed=2) and None,
    ):
        between = not whole(root)
        store.recover(root)
        assert whole(root) == [20]
        outcomes.add((between, open_checkpoint(root / "step_20").state["seed"]))
    assert outcomes == {(False, 1), (True, 1), (False, 2)}


def test_a_death_while_deleting_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    def prepare(root: Path) -> None:
        for step in (10, 20, 30):
            write_checkpoint(root, step)

    for root in every_death(tmp_path, prepare, lambda root: store.prune(root, keep=1) and None):
        assert whole(root)[-1] == 30
        store.prune(root, keep=1)
        assert [path.name for path in root.iterdir()] == ["step_30"]


def test_only_exact_names_are_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 5)
    for name in (
        "step_05",
        "step_6.tmp-ab",
        "step_7.old-ab",
        "step_8.broken-ab",
        "xstep_9",
        "step_",
        "step_-1",
        "step_1x",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    (tmp_path / "step_99").write_text("a file")
    (tmp_path / "step_50").mkdir()
    assert store.step_directories(tmp_path) == [5, 50]
    assert store.committed(tmp_path) == [5]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        write_checkpoint(tmp_path, step)
    assert store.committed(tmp_path) == [9, 20, 100]
    assert store.prune(tmp_path, keep=2) == [9]
    assert store.prune(tmp_path, keep=0) == [20], "the newest stays, whatever is asked"
    assert whole(tmp_path) == [100]


def test_the_best_checkpoint_is_kept_until_another_one_is_better(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, step)
    assert store.best(tmp_path) is None
    store.mark_best(tmp_path, 10)
    assert store.prune(tmp_path, keep=1) == [20]
    assert store.committed(tmp_path) == [10, 30] and (tmp_path / "best").resolve() == (tmp_path / "step_10").resolve()
    store.mark_best(tmp_path, 30)
    assert store.prune(tmp_path, keep=1) == [10] and store.best(tmp_path) == 30


def test_a_quarantined_checkpoint_is_kept_until_enough_newer_ones_exist(tmp_path: Path) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, step)
    broken = store.quarantine(tmp_path, 20)
    assert store.step_directories(tmp_path) == [10]
    write_checkpoint(tmp_path, 30)
    store.prune(tmp_path, keep=2)
    assert broken.is_dir()
    write_checkpoint(tmp_path, 40)
    store.prune(tmp_path, keep=2)
    assert not broken.exists() and whole(tmp_path) == [30, 40]


def test_files_and_directories_are_not_open_to_everyone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        directory = write_checkpoint(tmp_path, 1)
    finally:
        os.umask(old)
    assert directory.stat().st_mode & 0o777 == 0o750
    assert (directory / "manifest.json").stat().st_mode & 0o777 == 0o640


def test_a_step_saved_again_has_the_new_content(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3, seed=1)
    before = read_manifest(tmp_path / "step_3")
    write_checkpoint(tmp_path, 3, seed=2)
    assert read_manifest(tmp_path / "step_3") != before
    assert [path.name for path in tmp_path.iterdir()] == ["step_3"]


def test_a_fault_point_kills_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "fired"
    monkeypatch.setenv(store.FAULT, "before_rename@4")
    monkeypatch.setenv(store.FAULT_MARKER, str(marker))

    def child(step: int) -> int:
        pid = os.fork()
        if pid == 0:
            store.fault_point("before_rename", step)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert child(3) == 0 and not marker.exists()
    assert child(4) == -signal.SIGKILL and marker.exists()
    assert child(4) == 0

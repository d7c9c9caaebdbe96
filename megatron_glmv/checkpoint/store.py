"""Verbs on the directory of checkpoints. Policy (when to save, what to load) is manager.py's.

    checkpoints/step_20              committed: was renamed into place with its manifest inside
    checkpoints/step_30.tmp-4f1c     being written, or left behind by a process that died; never read
    checkpoints/step_20.old-4f1c     the previous step_20 while it is being replaced
    checkpoints/step_10.broken-4f1c  was refused at loading, kept for inspection
    checkpoints/best                 link to the step with the lowest validation loss (checkpoint.best)

Each verb can be interrupted anywhere: what has the name `step_N` was complete when it got that name. Only one process
(rank 0) calls these verbs.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from megatron_glmv.checkpoint import manifest as manifests
from megatron_glmv.checkpoint.manifest import Manifest

BEST = "best"
_STEP = re.compile(r"step_(0|[1-9][0-9]*)")
_ASIDE = re.compile(r"step_(0|[1-9][0-9]*)\.(tmp|old|broken)-[0-9a-f]+")

FAULT = "GLMV_CHECKPOINT_FAULT"
"""Environment variable for tests: `POINT@STEP` kills the process that saves STEP when it reaches POINT, by SIGKILL.

Points, in order: shard_written (rank 0's own), shards_written (all ranks'), before_manifest, manifest_tmp,
before_rename, between_renames (only where a step is saved again), before_prune. It fires once: the file named by
FAULT_MARKER is made first, and a fault whose marker exists is spent."""
FAULT_MARKER = "GLMV_CHECKPOINT_FAULT_MARKER"


def fault_point(point: str, step: int) -> None:
    """Dies here if a test asked for it (see FAULT)."""
    if os.environ.get(FAULT) == f"{point}@{step}":
        marker = Path(os.environ[FAULT_MARKER])
        if not marker.exists():
            marker.write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)


def step_directories(root: Path) -> list[int]:
    """Steps that have a directory under their own name, ascending. Such a directory was committed once."""
    if not root.is_dir():
        return []
    matches = (_STEP.fullmatch(path.name) for path in root.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def committed(root: Path) -> list[int]:
    """Steps with a manifest, ascending. Whether files agree with the manifest is not looked at."""
    return [step for step in step_directories(root) if (directory_of(root, step) / manifests.NAME).is_file()]


def directory_of(root: Path, step: int) -> Path:
    return root / f"step_{step}"


def stage(root: Path, step: int) -> Path:
    """Makes an empty directory in which the checkpoint of `step` can be written; what died earlier is removed."""
    root.mkdir(parents=True, exist_ok=True)
    recover(root)
    sweep(root)
    directory = _aside(root, step, "tmp")
    directory.mkdir(mode=0o750)
    sync_directory(root)
    return directory


def commit(staging: Path, root: Path, manifest: Manifest) -> Path:
    """Writes the manifest into `staging` and gives the directory its final name; returns that.

    A checkpoint of the same step is moved aside first and deleted afterwards; `recover` undoes a replacement that was
    interrupted in the middle.
    """
    step = manifest.step
    fault_point("before_manifest", step)
    write_file(staging / manifests.NAME, manifest.to_json(), after_temporary=lambda: fault_point("manifest_tmp", step))
    fault_point("before_rename", step)
    final, old = directory_of(root, step), None
    if final.exists():
        old = _aside(root, step, "old")
        final.rename(old)
        fault_point("between_renames", step)
    staging.rename(final)
    sync_directory(root)
    if old is not None:
        remove(old)
    return final


def recover(root: Path) -> None:
    """Puts back a checkpoint whose replacement did not arrive."""
    for path in _asides(root, "old"):
        final = root / path.name.split(".")[0]
        if not final.exists():
            path.rename(final)
            sync_directory(root)


def mark_best(root: Path, step: int) -> None:
    """Points `best` at a committed step, at once or not at all."""
    temporary = root / f".{BEST}-{secrets.token_hex(4)}"
    temporary.symlink_to(directory_of(root, step).name)
    temporary.replace(root / BEST)
    sync_directory(root)


def best(root: Path) -> int | None:
    """The step that `best` points at, if it is there."""
    try:
        match = _STEP.fullmatch((root / BEST).readlink().name)
    except OSError:
        return None
    return int(match[1]) if match else None


def prune(root: Path, keep: int) -> list[int]:
    """Deletes committed checkpoints but the best one and the newest `keep` (at least one); returns the deleted steps.

    Quarantined directories go when `keep` newer checkpoints exist, left-over ones at once.
    """
    steps = committed(root)
    kept, old = steps[-max(keep, 1) :], [step for step in steps[: -max(keep, 1)] if step != best(root)]
    for step in old:
        remove(directory_of(root, step))
    if len(kept) == max(keep, 1):
        for path in _asides(root, "broken"):
            if int(path.name.split(".")[0].removeprefix("step_")) < kept[0]:
                remove(path)
    recover(root)
    sweep(root)
    return old


def quarantine(root: Path, step: int) -> Path:
    """Renames a directory that was refused, so that it is not found again; returns the new path."""
    aside = _aside(root, step, "broken")
    directory_of(root, step).rename(aside)
    sync_directory(root)
    return aside


def sweep(root: Path) -> None:
    """Deletes what a dead process left behind."""
    for kind in ("tmp", "old"):
        for path in _asides(root, kind):
            remove(path)


def remove(directory: Path) -> None:
    """Deletes a checkpoint: renamed first, so that a half deleted one never has a checkpoint's name."""
    match = _STEP.fullmatch(directory.name)
    if match:
        aside = _aside(directory.parent, int(match[1]), "tmp")
        directory.rename(aside)
        directory = aside
    shutil.rmtree(directory, ignore_errors=True)  # what a slow file system keeps is swept the next time


def write_file(path: Path, text: str, after_temporary: Callable[[], None] = lambda: None) -> None:
    """Writes a file that is either there completely or not at all, also after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.chmod(temporary.stat().st_mode & 0o640)
    after_temporary()
    temporary.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes renames and new names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _aside(root: Path, step: int, kind: str) -> Path:
    return root / f"step_{step}.{kind}-{secrets.token_hex(4)}"


def _asides(root: Path, kind: str) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if (match := _ASIDE.fullmatch(p.name)) and match[2] == kind)

"""Conversions that are killed, repeated, refused: what is left behind, and what is said before any work.

Kills are SIGKILL of the working process at random moments of its work (killed.py). Not covered: a power cut, where what
counts is that files are synced before the journal names them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from convert.test_convert import exported, files, imported
from parity.conftest import Reference

from megatron_glmv.checkpoint.hf.exporting import ExportOptions, export_hf
from megatron_glmv.checkpoint.hf.importing import ImportOptions, import_hf
from megatron_glmv.checkpoint.hf.memory import anonymous, parse_size, plan_workers
from megatron_glmv.checkpoint.hf.work import Workspace
from megatron_glmv.config.errors import ConfigError

KILLED = Path(__file__).with_name("killed.py")


@pytest.mark.parametrize("kind", ["import", "export"])
def test_killed_at_ten_random_moments_it_goes_on_to_the_same_bytes(
    reference: Reference, kind: str, tmp_path: Path
) -> None:
    source = reference.hf("glm45v")
    if kind == "export":
        source = imported(source, tmp_path / "ours")
    (tmp_path / "work").mkdir()
    command = [sys.executable, str(KILLED), kind, str(source), str(tmp_path / "work"), "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["struck"] == 10 and report["beginning"] >= 3 and report["files"] > 20, report


def test_done_work_is_not_done_again_and_other_work_is_not_overwritten(reference: Reference, tmp_path: Path) -> None:
    first = ImportOptions(reference.hf("glm41v"), tmp_path / "out", without_tokenizer=True)
    assert import_hf(first).workers > 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert import_hf(first).workers == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(ConfigError, match=r"--out=.*holds something else"):
        import_hf(ImportOptions(reference.hf("glm45v"), tmp_path / "out", without_tokenizer=True))
    export_hf(ExportOptions(tmp_path / "out", tmp_path / "back"))
    with pytest.raises(ConfigError, match=r"--out=.*holds something else"):
        export_hf(ExportOptions(tmp_path / "out", tmp_path / "back", dtype="bf16"))


def test_a_beginning_of_other_work_and_a_second_process_are_refused(tmp_path: Path) -> None:
    begun = Workspace(tmp_path / "out", {"work": 1})
    begun.open()
    with pytest.raises(ConfigError, match="another process"):
        Workspace(tmp_path / "out", {"work": 1}).open()
    begun.close()
    with pytest.raises(ConfigError, match=r"out\.unfinished holds the beginning of other work"):
        Workspace(tmp_path / "out", {"work": 2}).open()
    again = Workspace(tmp_path / "out", {"work": 1})
    again.open()
    again.close()


def test_workers_do_not_change_a_byte(reference: Reference, tmp_path: Path) -> None:
    for workers in (1, 3):
        options = ImportOptions(reference.hf("glm45v"), tmp_path / f"{workers}", without_tokenizer=True)
        import_hf(ImportOptions(**{**vars(options), "workers": workers}))
        exported(tmp_path / f"{workers}", tmp_path / f"{workers} back", workers=workers, max_shard_size=100_000)
    assert files(tmp_path / "1") == files(tmp_path / "3")
    assert files(tmp_path / "1 back") == files(tmp_path / "3 back")


def test_too_little_disk_is_said_before_anything_is_written(reference: Reference, tmp_path: Path) -> None:
    """On a disk of 512 KiB: a tmpfs in a mount namespace of the command's own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    own = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=512k none {disk}"
    if not shutil.which("unshare") or subprocess.run([*own, mount], capture_output=True).returncode:
        pytest.skip("no mount namespace for a user here")
    glmv = f"{sys.executable} -m megatron_glmv.cli convert import --without-tokenizer"
    command = f"{glmv} --hf {reference.hf('glm45v')} --out {disk}/out"
    done = subprocess.run(
        [*own, f"{mount} && {command}; echo ended with $?; ls -R {disk}"], capture_output=True, text=True
    )
    assert "of disk space, and 5" in done.stderr and "KiB are free" in done.stderr, done.stderr[-2000:]
    assert "ended with 0" not in done.stdout and "ended with" in done.stdout
    assert ".distcp" not in done.stdout


def test_a_memory_limit_makes_workers_fewer_or_is_refused() -> None:
    have, buffer = anonymous() + (96 << 20), 64 << 20
    assert plan_workers(None, buffer, have + 3 * buffer + buffer // 2, 8)[0] == 3
    assert plan_workers(None, buffer, None, 8)[0] == 8
    with pytest.raises(ConfigError, match="--memory-limit"):
        plan_workers(4, buffer, have + 3 * buffer, 8)
    with pytest.raises(ConfigError, match="--memory-limit"):
        plan_workers(None, buffer, have, 8)
    assert [parse_size(text, "x") for text in ("2GiB", "5GB", "1.5 MiB", "17")] == [2 << 30, 5 * 10**9, 3 << 19, 17]
    for text in ("", "0", "-1", "2 apples", "1e9"):
        with pytest.raises(ConfigError, match="is no size"):
            parse_size(text, "x")

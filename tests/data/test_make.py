"""`glmv data make`: conversations with media to shards, what is rejected and why, and the ledger of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from data.media_files import FAST, clip
from data.small_set import ask, png

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.make import make_shards, safe_key
from megatron_glmv.data.quarantine import Bad, Quarantine, read_ledger


def folder(directory: Path) -> Path:
    """Twelve conversations, seven of them unusable, each in its own way."""
    (directory / "media").mkdir(parents=True)
    (directory / "media" / "a.png").write_bytes(png(1))
    (directory / "media" / "b.PNG").write_bytes(png(2))
    (directory / "media" / "v.webm").write_bytes(clip("webm", codec="libvpx-vp9", options=FAST))
    (directory / "media" / "empty.jpg").write_bytes(b"")
    (directory / "media" / "text.jpg").write_text("no image")
    (directory / "media" / "cut.webm").write_bytes((directory / "media" / "v.webm").read_bytes()[:4000])
    (directory.parent / "secret.png").write_bytes(png(3))
    (directory / "media" / "link.png").symlink_to(directory.parent / "secret.png")
    lines: list[Any] = [
        {"id": "image", **ask("image", "media/a.png", [("Colour?", "red")])},
        {"id": "video/1", **ask("video", "media/v.webm", [("Where?", "left")])},
        {"id": "text", **ask("", "", [("Hi", "there")])},
        ask("image", "media/b.PNG", [("Colour?", "blue")]),
        {"id": "image", **ask("image", "media/b.PNG", [("Again?", "yes")])},
        {"id": "missing", **ask("image", "media/none.png", [("a", "b")])},
        {"id": "outside", **ask("image", "../secret.png", [("a", "b")])},
        {"id": "linked", **ask("image", "media/link.png", [("a", "b")])},
        {"id": "empty", **ask("image", "media/empty.jpg", [("a", "b")])},
        {"id": "text as image", **ask("image", "media/text.jpg", [("a", "b")])},
        {"id": "cut", **ask("video", "media/cut.webm", [("a", "b")])},
        {"id": "absolute", **ask("image", str(directory / "media" / "a.png"), [("a", "b")])},
    ]
    source = directory / "all.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines) + "not json\n\n")
    return source


REASONS = {
    "image": "already used",
    "missing": "no such file",
    "outside": "outside",
    "linked": "outside",
    "empty": "0 bytes",
    "text as image": "not a readable image",
    "cut": "ended prematurely",
    "absolute": "outside",
    "all.jsonl:13": "not JSON",
}


def test_the_command_makes_shards_and_lists_every_reject(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    command = [sys.executable, "-m", "megatron_glmv.cli", "data", "make", "--jsonl", str(source)]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert "4 samples with 3 media in 1 shards, 9 rejected" in done.stdout
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == list(REASONS)
    for reject in rejects:
        assert REASONS[reject["id"]] in reject["reason"], reject
    data = ShardDataset(tmp_path / "out")
    assert len(data) == 4
    assert data.entry(0).key == "image"
    assert data.conversation(1)["id"] == "video/1"
    assert data.member(0, "0.png") == png(1)
    again = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True)
    assert again.returncode == 65
    assert "already holds" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    one = make_shards(tmp_path / "one", jsonl=source, samples_per_shard=2)
    two = make_shards(tmp_path / "two", directory=source.parent, samples_per_shard=2, workers=2)
    assert (one.samples, one.shards, one.rejected) == (two.samples, two.shards, two.rejected) == (4, 2, 9)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_nothing_usable_is_a_data_error_with_the_first_reason(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("x\n")
    with pytest.raises(DataError, match="not JSON"):
        make_shards(tmp_path / "out", jsonl=tmp_path / "in.jsonl")
    with pytest.raises(DataError, match="is not a file"):
        make_shards(tmp_path / "out", jsonl=tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no"):
        make_shards(tmp_path / "out", directory=folder(tmp_path / "other").parent / "media")


def test_any_id_gives_a_key_of_its_own() -> None:
    ids = ["a", "a.b", "a/b", "../x", "-f", "x" * 300, "x" * 301, "漢字", "", "a b", "\ud800"]
    keys = [safe_key(ident) for ident in ids]
    assert keys[0] == "a"
    assert len(set(keys)) == len(ids)
    assert all(len(key) <= 96 and key.isascii() and "/" not in key for key in keys)


def test_the_ledger_names_each_sample_once_survives_a_cut_line_and_has_a_budget(tmp_path: Path) -> None:
    ledger = Quarantine(tmp_path, 0.02)
    assert ledger.add("a", "s.tar", "cut")
    assert not ledger.add("a", "s.tar", "again")
    with ledger.path.open("a") as file:
        file.write('{"key": "b", "sha')  # a crash in the middle of a line
    assert read_ledger(ledger.path) == [Bad("a", "s.tar", "cut")]
    ledger.check(100)
    ledger.add("c", "s.tar", "damaged")
    ledger.add("d", "s.tar", "damaged")
    with pytest.raises(DataError, match=r"3 of 100 samples failed.* d: damaged"):
        ledger.check(100)
    ledger.check(200)
    assert list(Quarantine(tmp_path, 0.02).bad) == ["a", "c", "d"], "the cut line is not glued to the next one"

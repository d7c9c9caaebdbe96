"""Shards as they are written and read, the index beside them, and tars that mean harm."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.small_set import ask, png

from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.index import ShardDataset, build_index
from megatron_glmv.data.shards import ShardWriter, scan_shard


def write(directory: Path, count: int = 5, **options: Any) -> Path:
    with ShardWriter(directory, **{"samples_per_shard": 2} | options) as writer:
        for i in range(count):
            writer.add(f"s-{i}", {"id": f"s-{i}", **ask("image", "0.png", [("What?", "red")])}, {"0.png": png(i)})
    return directory


def tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as out:
        for info, data in members:
            out.addfile(info, io.BytesIO(data))
    return path


def info(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def test_equal_samples_give_equal_bytes_that_webdataset_tools_can_read(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    with tarfile.open(first / names[1]) as shard:
        assert shard.getnames() == ["s-2.json", "s-2.0.png", "s-3.json", "s-3.0.png"]
        member = shard.extractfile("s-2.0.png")
        assert member is not None and member.read() == png(2)
        assert [(m.name, m.offset, m.size) for m in scan_shard(first / names[1])] == [
            (m.name, m.offset_data, m.size) for m in shard.getmembers()
        ]


def test_a_member_is_read_by_offset_and_checked_by_its_sum(tmp_path: Path) -> None:
    build_index(write(tmp_path))
    data = ShardDataset(tmp_path)
    assert [data.entry(i).key for i in range(len(data))] == [f"s-{i}" for i in range(5)]
    i = data.find("s-3")
    assert data.member(i, "0.png") == png(3)
    assert data.conversation(i)["id"] == "s-3"
    assert data.entry(i).media[0].width == 84
    with pytest.raises(SampleError, match="no member"):
        data.member(i, "1.png")
    offset, _, _ = data.entry(i).members["0.png"]
    with (tmp_path / data.entry(i).shard).open("r+b") as shard:
        shard.seek(offset + 40)
        shard.write(b"\0\1\2")
    with pytest.raises(SampleError, match="sha256"):
        data.member(i, "0.png")
    assert data.member(data.find("s-2"), "0.png") == png(2)


def test_the_index_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    build_index(write(tmp_path))
    one = (tmp_path / "index.jsonl").read_bytes()
    build_index(tmp_path, workers=2)
    assert (tmp_path / "index.jsonl").read_bytes() == one


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "index.json").unlink(), "glmv data make"),
        (lambda d: (d / "index.json").write_text("{"), "unreadable"),
        (lambda d: (d / "index.json").write_text('{"version": 9, "shards": {}}'), "version 9"),
        (lambda d: (d / "index.jsonl").write_text("x"), "differs"),
        (lambda d: (d / "shard-000009.tar").write_bytes(b"x"), "stale"),
        (lambda d: (d / "shard-000001.tar").unlink(), "stale"),
    ],
)
def test_an_index_that_does_not_belong_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], words: str) -> None:
    build_index(write(tmp_path))
    spoil(tmp_path)
    with pytest.raises(DataError, match=words):
        ShardDataset(tmp_path)


HOSTILE: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], str]] = {
    "link": ([(info("a.json", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b"")], "not a plain file"),
    "hard link": ([(info("a.json", type=tarfile.LNKTYPE, linkname="b"), b"")], "not a plain file"),
    "device": ([(info("a.json", type=tarfile.CHRTYPE), b"")], "not a plain file"),
    "pipe": ([(info("a.json", type=tarfile.FIFOTYPE), b"")], "not a plain file"),
    "absolute": ([(info("/a.json", 2), b"{}")], "absolute"),
    "upwards": ([(info("x/../../a.json", 2), b"{}")], "leaves the shard"),
    "backslash": ([(info("..\\a.json", 2), b"{}")], "leaves the shard"),
    "twice": ([(info("a.json", 2), b"{}"), (info("a.json", 2), b"{}")], "appears twice"),
    "apart": ([(info(n, 2), b"{}") for n in ("a.json", "b.json", "a.0.png")], "do not lie next to each other"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_shards_are_refused(tmp_path: Path, kind: str) -> None:
    members, words = HOSTILE[kind]
    tar(tmp_path / "shard-000000.tar", members)
    with pytest.raises(DataError, match=words):
        build_index(tmp_path)
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_other_writers_are_read_and_links_in_them_refused(tmp_path: Path, form: int) -> None:
    name = "d" * 90 + "/" + "k" * 90
    path = tar(tmp_path / "a.tar", [(info(name + ".json", 2), b"{}")], form)
    assert [member.name for member in scan_shard(path)] == [name + ".json"]
    path = tar(tmp_path / "b.tar", [(info("a.json", type=tarfile.SYMTYPE, linkname="l" * 200), b"")], form)
    with pytest.raises(DataError):
        list(scan_shard(path))


def test_sizes_that_lie_and_shards_that_are_cut_or_compressed_are_refused(tmp_path: Path) -> None:
    whole = (write(tmp_path / "a", 2) / "shard-000000.tar").read_bytes()
    huge = info("a.json", 1 << 40).tobuf(tarfile.GNU_FORMAT)
    import gzip

    for bad in (whole[:-1500], whole[:700], gzip.compress(whole), huge, os.urandom(4096)):
        (tmp_path / "bad.tar").write_bytes(bad)
        with pytest.raises(DataError):
            list(scan_shard(tmp_path / "bad.tar"))
    (tmp_path / "bad.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match="behind the end"):
        list(scan_shard(tmp_path / "bad.tar"))


def test_pickles_and_commands_in_a_shard_are_bytes_and_nothing_else(tmp_path: Path) -> None:
    """webdataset would unpickle the one and run the other."""
    mark = tmp_path / "mark"
    pickle = f"cposix\nsystem\n(Vtouch {mark}\ntR.".encode()
    text = json.dumps(ask("", "", [("a?", "b")])).encode()
    members = [("a.json", text), ("a.pkl", pickle), ("a.pyd", pickle), ("a.pth", pickle)]
    tar(tmp_path / "shard-000000.tar", [(info(n, len(d)), d) for n, d in members])
    build_index(tmp_path)
    data = ShardDataset(tmp_path)
    assert data.member(0, "pkl") == pickle
    assert not mark.exists()
    with pytest.raises(DataError):
        ShardDataset(Path(f"pipe:touch {mark}"))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "not JSON"), (b"[]", "not a JSON object"), (b"[" * 100_000, "not JSON"), (b"{}", "messages")],
)
def test_a_conversation_that_is_none_is_one_bad_sample(tmp_path: Path, content: bytes, words: str) -> None:
    good = json.dumps(ask("", "", [("a?", "b")])).encode()
    tar(tmp_path / "s.tar", [(info("a.json", len(content)), content), (info("b.json", len(good)), good)])
    build_index(tmp_path)
    data = ShardDataset(tmp_path)
    assert words in data.entry(0).reason
    assert not data.entry(1).reason


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [("a.b", "0.png", "key"), ("../a", "0.png", "key"), ("a", "../0.png", "member name"), ("a", "json", "reserved")],
)
def test_names_that_cannot_be_stored_are_refused(tmp_path: Path, key: str, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words), ShardWriter(tmp_path) as writer:
        writer.add(key, ask("image", name, [("a?", "b")]), {name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_no_shard_and_writes_into_no_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="already written"), ShardWriter(tmp_path) as writer:
        for _ in range(2):
            writer.add("a", ask("", "", [("a?", "b")]), {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="not handed over"), ShardWriter(tmp_path) as writer:
        writer.add("a", ask("image", "0.png", [("a?", "b")]), {})
    write(tmp_path)
    with pytest.raises(DataError, match="empty directory"):
        ShardWriter(tmp_path)

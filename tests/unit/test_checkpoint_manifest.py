"""manifest.json is either what was written, or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from unit.checkpoint_files import manifest

from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.manifest import FileRecord, hash_file, read_manifest

RECORD = FileRecord(bytes=3, sha256="ab" * 32)


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "manifest.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    original = manifest(7, {"state.json": RECORD, ".metadata": RECORD, "__0_0.distcp": RECORD})
    write(tmp_path, original.to_json())
    assert read_manifest(tmp_path) == original


def test_no_flipped_bit_and_no_truncation_goes_unnoticed(tmp_path: Path) -> None:
    original = manifest(7, {"state.json": RECORD})
    text = original.to_json().encode()
    refused = 0
    for position in range(len(text)):
        for bit in (1, 2, 64):
            write(tmp_path, text[:position] + bytes([text[position] ^ bit]) + text[position + 1 :])
            try:
                assert read_manifest(tmp_path) == original, f"byte {position}: one kind of white space for another"
            except ReadError:
                refused += 1
    assert refused > 2.8 * len(text)
    for length in range(len(text) - 1):  # without the last newline it is the same manifest
        write(tmp_path, text[:length])
        with pytest.raises(ReadError):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    "name", ["../state.json", "/etc/passwd", "a/b", "", ".", "..", "manifest.json", "x" * 300, "a\0b"]
)
def test_names_that_leave_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, manifest(7, {name: RECORD}).to_json())
    with pytest.raises(ReadError, match="no name for a file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "record",
    [FileRecord(-1, "ab" * 32), FileRecord("3", "ab" * 32), FileRecord(3, "AB" * 32), FileRecord(3, "ab" * 31)],  # type: ignore[arg-type]
)
def test_a_record_has_a_size_and_a_sha256(tmp_path: Path, record: FileRecord) -> None:
    write(tmp_path, manifest(7, {"state.json": record}).to_json())
    with pytest.raises(ReadError, match=r"state\.json"):
        read_manifest(tmp_path)


def test_a_step_is_a_count(tmp_path: Path) -> None:
    write(tmp_path, dataclasses.replace(manifest(7, {}), step=-1).to_json())
    with pytest.raises(ReadError, match="step"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "cannot be read"),
        ("[]", "not a manifest"),
        ('{"format": "another"}', "not a manifest"),
        ('{"format": "megatron_glmv.checkpoint", "format_version": 99}', "version 99"),
        ('{"format": "megatron_glmv.checkpoint", "format_version": 1}', "digest"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, text: str | bytes, reason: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ReadError, match=reason):
        read_manifest(tmp_path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    from megatron_glmv.checkpoint.manifest import _digest

    content = json.loads(manifest(7, {}).to_json())
    del content["digest"], content["topology"]
    write(tmp_path, json.dumps({**content, "digest": _digest(content)}))
    with pytest.raises(ReadError, match="topology"):
        read_manifest(tmp_path)


def test_hashing_sees_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    record = hash_file(path)
    path.write_bytes(b"x" * 2_999_999 + b"y")
    assert record.bytes == 3_000_000 and hash_file(path).sha256 != record.sha256

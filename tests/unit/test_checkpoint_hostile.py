"""A checkpoint from a stranger runs no code: not through its index, its shards, nor files we do not read.

Every payload makes a marker file. Each test first shows that the payload works where it is read as torch reads it.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from unit.checkpoint_files import archive, recommit, write_checkpoint, write_index

from megatron_glmv.checkpoint import index
from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.reader import open_checkpoint


class Runs:
    """Unpickled, calls `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoints", 5)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def payloads(marker: Path) -> dict[str, Any]:
    make = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch {marker}"),
        "eval": Runs(eval, make),
        "exec": Runs(exec, make),
        "inside a dict": {"a": [Runs(os.mkdir, str(marker))]},
        "as a key": {Runs(os.mkdir, str(marker)): 1},
        "Path method": Runs(Path.touch, marker),
        "defaultdict factory": collections.defaultdict(os.getcwd),
        "getattr": Runs(getattr, str, "upper"),
    }


@pytest.mark.parametrize("kind", payloads(Path("x")))
@pytest.mark.parametrize("where", ["alone", "state_dict_metadata", "storage_data", "planner_data", "attribute"])
def test_an_index_cannot_name_anything_but_its_own_records(saved: Path, marker: Path, kind: str, where: str) -> None:
    payload = payloads(marker)[kind]
    metadata: Any = pickle.loads((saved / ".metadata").read_bytes())
    if where == "alone":
        metadata = payload
    elif where == "attribute":
        metadata.more = payload
    else:
        setattr(metadata, where, {"x": payload})
    write_index(saved, metadata)
    recommit(saved)
    with pytest.raises(ReadError, match="has no place in the index"):
        open_checkpoint(saved, verify=True).parse()
    assert not marker.exists()
    if kind not in ("defaultdict factory", "getattr"):  # these run something harmless
        pickle.loads((saved / ".metadata").read_bytes())
        assert marker.exists(), "the payload is harmless, so this test shows nothing"


def test_an_entry_that_torch_would_unpickle_is_refused(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    metadata.state_dict_metadata["rng"] = BytesStorageMetadata()
    write_index(saved, metadata)
    recommit(saved)
    with pytest.raises(ReadError, match="'rng' is not a tensor"):
        open_checkpoint(saved, verify=True).parse()


def test_a_shard_that_holds_an_object_is_not_unpickled(saved: Path, marker: Path) -> None:
    content = archive(Runs(os.mkdir, str(marker)))
    (saved / "__1_0.distcp").write_bytes(content)
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for key, place in metadata.storage_data.items():
        if key.fqn == "weight":
            place.relative_path, place.offset, place.length = "__1_0.distcp", 0, len(content)
    write_index(saved, metadata)
    recommit(saved)
    with pytest.raises(ReadError, match=r"__1_0\.distcp"):
        open_checkpoint(saved, verify=True).tensor("weight")
    assert not marker.exists()
    torch.load(io.BytesIO(content), weights_only=False)
    assert marker.exists()


def test_files_that_are_not_ours_are_never_opened(saved: Path, marker: Path) -> None:
    """common.pt of megatron-core, and whatever else lies there."""
    for name in ("common.pt", "rng.pkl", "__init__.py"):
        (saved / name).write_bytes(archive(Runs(os.mkdir, str(marker))))
    checkpoint = open_checkpoint(saved, verify=True)
    assert all(checkpoint.tensor(name) is not None for name in checkpoint.tensors)
    assert not marker.exists()


@pytest.mark.parametrize("path", ["../secret.distcp", "/etc/passwd", "state.json", "__0_0.distcp/../x", "__9_0.distcp"])
def test_chunks_lie_in_listed_shards_only(saved: Path, path: str) -> None:
    (saved.parent / "secret.distcp").write_bytes(archive(torch.zeros(3, 4)))
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = path
    write_index(saved, metadata)
    recommit(saved)
    with pytest.raises(ReadError, match=r"no shard of this checkpoint|not in the manifest"):
        open_checkpoint(saved, verify=True).tensor("weight")


def test_sizes_are_checked_before_anything_is_allocated(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    weight = metadata.state_dict_metadata["weight"]
    weight.size = torch.Size((1 << 40, 1 << 10))
    weight.chunks = [type(weight.chunks[0])(torch.Size((0, 0)), weight.size)]
    write_index(saved, metadata)
    recommit(saved)
    with pytest.raises(ReadError, match=r"weight has .* bytes for"):
        open_checkpoint(saved).tensor("weight")


def test_transformations_of_bytes_are_refused(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.transform_descriptors = ["zstd"]
    write_index(saved, metadata)
    recommit(saved)
    with pytest.raises(ReadError, match="transformation"):
        open_checkpoint(saved).parse()


def test_one_index_cannot_change_how_the_next_is_read(saved: Path) -> None:
    """A pickle may set attributes of a class it names; the classes live as long as one load."""

    opcodes = (  # GLOBAL Metadata, BUILD with (None, {"state_dict_metadata": 1}): setattr on the class
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\nN}X\x13\x00\x00\x00state_dict_metadataK\x01s\x86b."
    )
    good = (saved / ".metadata").read_bytes()
    (saved / ".metadata").write_bytes(opcodes)
    recommit(saved)
    with pytest.raises(ReadError):
        open_checkpoint(saved).parse()
    assert not hasattr(index._Record, "state_dict_metadata")
    (saved / ".metadata").write_bytes(good)
    recommit(saved)
    open_checkpoint(saved).parse()


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b".", b"not a pickle", b"N.", b"]q\x00h\x00a.", b"}.", b"\x80\x04Q."]
)
def test_a_damaged_index_is_an_error_and_nothing_else(saved: Path, content: bytes) -> None:
    (saved / ".metadata").write_bytes(content)
    recommit(saved)
    with pytest.raises(ReadError, match=r"\.metadata"):
        open_checkpoint(saved).parse()


def test_no_truncation_of_an_index_is_read(saved: Path) -> None:
    content = (saved / ".metadata").read_bytes()
    for length in range(0, len(content) - 1, 7):
        (saved / ".metadata").write_bytes(content[:length])
        with pytest.raises(ReadError):
            index.read_index(saved)

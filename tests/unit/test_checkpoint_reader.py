"""Reading gives back every bit that was saved, and refuses what was damaged."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from unit.checkpoint_files import SHARD, archive, recommit, tensors, write_checkpoint, write_index

from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.reader import Checkpoint, differing_tensors, open_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run" / "checkpoints", 5)


def equal(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)


def test_tensors_come_back_bit_by_bit_from_their_chunks(saved: Path) -> None:
    checkpoint = open_checkpoint(saved, verify=True)
    assert len(checkpoint.tensors["weight"].chunks) == 4
    for name, tensor in tensors().items():
        assert equal(checkpoint.tensor(name), tensor), name
    assert checkpoint.state == {"seed": 0} and checkpoint.optimizer_step == 5
    assert set(checkpoint.weights) == {"weight", "half", "counts", "scalar"}


@pytest.mark.parametrize(
    "offset, shape", [((0, 0), (6, 8)), ((2, 3), (3, 4)), ((3, 4), (3, 4)), ((5, 7), (1, 1)), ((1, 0), (0, 8))]
)
def test_any_box_of_a_tensor_can_be_read(saved: Path, offset: tuple[int, int], shape: tuple[int, int]) -> None:
    box = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
    assert equal(open_checkpoint(saved).read("weight", offset, shape), tensors()["weight"][box])


@pytest.mark.parametrize("offset, shape", [((0, 0), (7, 8)), ((-1, 0), (1, 1)), ((0,), (6,)), ((6, 8), (1, 1))])
def test_a_box_outside_is_refused(saved: Path, offset: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(ReadError, match="not inside"):
        open_checkpoint(saved).read("weight", offset, shape)


def test_a_run_directory_opens_its_newest_checkpoint(saved: Path) -> None:
    write_checkpoint(saved.parent, 12)
    for path in (saved.parent, saved.parent.parent):
        assert open_checkpoint(path).manifest.step == 12
    with pytest.raises(ReadError, match=r"manifest\.json is missing"):
        open_checkpoint(saved.parent.parent.parent)
    with pytest.raises(ReadError, match="not a directory"):
        open_checkpoint(saved / "nowhere")


FILES = [SHARD, ".metadata", "state.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_by_sha256_and_the_file_named(saved: Path, name: str) -> None:
    path = saved / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ReadError, match=rf"{name} does not have the sha256"):
        open_checkpoint(saved, verify=True)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "missing", "a link", "a directory"])
def test_a_file_that_is_not_what_was_saved_is_found_without_sha256(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a link":
        (saved.parent / "elsewhere").write_bytes(content)
        path.symlink_to(saved.parent / "elsewhere")
    elif damage == "a directory":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"truncated": content[:-1], "empty": b"", "longer": content + b"x"}[damage])
    with pytest.raises(ReadError, match=name):
        open_checkpoint(saved)


@pytest.mark.parametrize("target", [SHARD, "."])
def test_what_every_user_can_write_is_refused_with_the_remedy(saved: Path, target: str) -> None:
    (saved / target).chmod(0o777)
    with pytest.raises(ReadError, match="chmod -R o-w"):
        open_checkpoint(saved)


def test_a_state_of_another_step_is_refused(saved: Path) -> None:
    (saved / "state.json").write_text('{"step": 6, "optimizer_step": 6, "trainer": {}}')
    recommit(saved)
    with pytest.raises(ReadError, match=r"state\.json"):
        open_checkpoint(saved, verify=True).parse()


def test_one_different_bit_is_a_difference_and_equal_nans_are_not(tmp_path: Path) -> None:
    ours = open_checkpoint(write_checkpoint(tmp_path / "a", 1))
    theirs = open_checkpoint(write_checkpoint(tmp_path / "b", 1))
    assert differing_tensors(ours, theirs) == []
    other = open_checkpoint(write_checkpoint(tmp_path / "c", 1, seed=3))
    assert "optimizer.state.exp_avg.weight" in differing_tensors(ours, other)
    assert differing_tensors(ours, other, optimizer=False) == ["counts", "half", "scalar", "weight"]
    nan = torch.tensor([float("nan"), 0.0])
    minus = torch.tensor([float("nan"), -0.0])
    assert differing_tensors(_holding(nan), _holding(nan)) == []
    assert differing_tensors(_holding(nan), _holding(minus)) == ["x"]


class _holding(Checkpoint):
    """A checkpoint in memory, to compare single bits."""

    def __init__(self, tensor: torch.Tensor) -> None:
        object.__setattr__(self, "held", tensor)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return {"x": self.held}  # type: ignore[attr-defined]

    def tensor(self, name: str) -> torch.Tensor:
        return self.held  # type: ignore[attr-defined, no-any-return]


def test_an_index_that_does_not_cover_its_tensor_is_refused(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    weight = metadata.state_dict_metadata["weight"]
    for chunks in (weight.chunks[:3], [weight.chunks[0]] * 4, [replace(weight.chunks[3], sizes=torch.Size((9, 9)))]):
        metadata.state_dict_metadata["weight"] = replace(weight, chunks=chunks)
        write_index(saved, metadata)
        recommit(saved)
        with pytest.raises(ReadError, match=r"\.metadata is damaged.*weight"):
            open_checkpoint(saved).parse()


def test_a_chunk_with_another_shape_or_type_than_its_index_says_is_refused(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for wrong in (torch.zeros(3, 5), torch.zeros(3, 4, dtype=torch.float64)):
        content = archive(wrong)
        (saved / "__1_0.distcp").write_bytes(content)
        for key, place in metadata.storage_data.items():
            if key.fqn == "weight":
                place.relative_path, place.offset, place.length = "__1_0.distcp", 0, len(content)
        write_index(saved, metadata)
        recommit(saved)
        with pytest.raises(ReadError, match=r"do not hold a torch\.float32 tensor"):
            open_checkpoint(saved).tensor("weight")


def test_an_archive_that_grows_when_it_is_read_is_refused(saved: Path) -> None:
    """Sizes are known before torch allocates: nothing is compressed in what torch.save writes."""
    small = saved / "__1_0.distcp"
    with (
        zipfile.ZipFile(saved.parent / "plain", "w") as plain,
        zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        (saved.parent / "source").write_bytes(archive(torch.zeros(3_000_000)))
        with zipfile.ZipFile(saved.parent / "source") as source:
            for name in source.namelist():
                plain.writestr(name, source.read(name))
                packed.writestr(name, source.read(name))
    assert small.stat().st_size < 100_000
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for key, place in metadata.storage_data.items():
        if key.fqn == "weight":
            place.relative_path, place.offset, place.length = "__1_0.distcp", 0, small.stat().st_size
    write_index(saved, metadata)
    recommit(saved)
    with pytest.raises(ReadError, match="would grow"):
        open_checkpoint(saved).tensor("weight")

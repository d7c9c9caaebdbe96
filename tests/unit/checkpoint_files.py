"""Checkpoints for tests, written as torch writes them: torch.save archives in a row, and a pickle that says where."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.manifest import FileRecord, Manifest, hash_file

SHARD = "__0_0.distcp"


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(6, 8, generator=g),
        "half": torch.randn(4, 4, generator=g).bfloat16(),
        "counts": torch.arange(5) + seed,
        "scalar": torch.tensor(float(seed)),
        "optimizer.state.exp_avg.weight": torch.randn(6, 8, generator=g),
    }


def archive(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def boxes(tensor: torch.Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offset and shape of the chunks a tensor is saved in: matrices in four, the rest whole."""
    if tensor.ndim != 2:
        return [((0,) * tensor.ndim, tuple(tensor.shape))]
    h, w = tensor.shape[0] // 2, tensor.shape[1] // 2
    return [((r, c), (h, w)) for r in (0, h) for c in (0, w)]


def write_shards(directory: Path, values: dict[str, torch.Tensor]) -> Metadata:
    """Writes one shard file and returns the index of it, which `write_index` can store, changed or not."""
    entries, places = {}, {}
    with (directory / SHARD).open("wb") as file:
        for name, tensor in values.items():
            chunks = []
            for offset, shape in boxes(tensor):
                box = tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))
                start = file.tell()
                length = file.write(archive(tensor[box].clone()))
                places[MetadataIndex(name, torch.Size(offset))] = _StorageInfo(SHARD, start, length)
                chunks.append(ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)))
            properties = TensorProperties.create_from_tensor(tensor)
            entries[name] = TensorStorageMetadata(properties, tensor.shape, chunks)
    return Metadata(entries, storage_data=places, storage_meta=StorageMeta(checkpoint_id=".", save_id="1"))


def write_index(directory: Path, metadata: Any) -> None:
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


def manifest(step: int, files: dict[str, FileRecord], **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "step": step,
        "optimizer": True,
        "model": {"name": "m", "text": {"layers": 4}},
        "tokenizer_fingerprint": "tok",
        "config_fingerprint": "cfg",
        "topology": {"tensor": 1},
        "package_version": "0",
        "libraries": {"torch": "0"},
        "files": files,
    }
    return Manifest(**{**fields, **changes})


def hash_all(directory: Path) -> dict[str, FileRecord]:
    return {path.name: hash_file(path, before=os.fsync) for path in directory.iterdir()}


def write_checkpoint(root: Path, step: int, seed: int = 0) -> Path:
    """A committed checkpoint through the verbs that the manager uses."""
    staging = store.stage(root, step)
    write_index(staging, write_shards(staging, tensors(seed)))
    (staging / "state.json").write_text(f'{{"step": {step}, "optimizer_step": {step}, "trainer": {{"seed": {seed}}}}}')
    for path in staging.iterdir():
        path.chmod(0o640)
    return store.commit(staging, root, manifest(step, hash_all(staging)))


def recommit(directory: Path) -> None:
    """Makes the manifest agree with changed files: what somebody who wants to be trusted would do."""
    from megatron_glmv.checkpoint.manifest import read_manifest

    old = read_manifest(directory)
    (directory / "manifest.json").unlink()
    new = manifest(old.step, hash_all(directory))
    store.write_file(directory / "manifest.json", new.to_json())

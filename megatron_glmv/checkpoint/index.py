"""Which part of which tensor lies where: torch's `.metadata`, read without trusting it.

`.metadata` is a pickle, and torch loads it with a plain pickle.load (torch/distributed/checkpoint/filesystem.py), which
runs whatever the file says. Here an unpickler that knows a dozen names reads it, and those names stand for records of
this file, not for torch's classes; the result is checked field by field before anything is allocated.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_glmv.checkpoint.errors import ReadError

NAME = ".metadata"
_SHARD_FILE = re.compile(r"__[0-9]+_[0-9]+\.distcp")
_DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and the bytes that hold it: `length` bytes from `start` of `file`, one torch.save archive."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a whole; its chunks are disjoint and cover it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_index(directory: Path) -> dict[str, TensorRecord]:
    """The tensors of a checkpoint by name.

    Raises ReadError if `.metadata` is damaged, names anything that is not on the list, holds an entry that is not a
    tensor (torch would unpickle it), or describes chunks that do not fit their tensor.
    """
    path = directory / NAME
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error}") from None
    except _NotAllowedError as error:
        raise ReadError(f"{path} refused: {error}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise ReadError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    try:
        places = {
            (key.fqn, _ints(key.offset)): info
            for key, info in metadata.storage_data.items()
            if isinstance(key, _Record) and isinstance(info, _Record)
        }
        return {name: _tensor(name, entry, places) for name, entry in metadata.state_dict_metadata.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReadError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    except _NotAllowedError as error:
        raise ReadError(f"{path} refused: {error}") from None


class _NotAllowedError(Exception):
    pass


class _Record:
    """Stands for a class named in the pickle; has the fields the pickle gives it."""

    kind = ""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.kind} without {name}")

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


class _Unpickler(pickle.Unpickler):
    """Makes its own stand-ins: a pickle can set attributes of what it names, and must not reach the next load's."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        base, metadata = "torch.distributed.checkpoint", "torch.distributed.checkpoint.metadata"
        records = [(f"{base}.filesystem", "_StorageInfo"), *((metadata, name) for name in _METADATA_CLASSES)]
        self._names: dict[tuple[str, str], Any] = {key: type("_Named", (_Record,), {"kind": key[1]}) for key in records}
        self._names |= {("torch", name): getattr(torch, name) for name in _DTYPES}
        for key in (("torch", "Size"), ("torch.serialization", "_get_layout"), (metadata, "_MEM_FORMAT_ENCODING")):
            self._names[key] = _tuple_of if key[1] == "Size" else _ignore

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise _NotAllowedError(f"{module}.{name} has no place in the index of a checkpoint") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _NotAllowedError("persistent references have no place in the index of a checkpoint")


_METADATA_CLASSES = (
    *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
    *("TensorProperties", "ChunkStorageMetadata"),
)


def _tuple_of(values: Any = ()) -> tuple[int, ...]:
    return _ints(values)


def _ignore(*_: Any) -> None:
    return None


_Places = dict[tuple[Hashable, tuple[int, ...]], Any]


def _tensor(name: Any, entry: Any, places: _Places) -> TensorRecord:
    if not isinstance(name, str) or not isinstance(entry, _Record):
        raise TypeError(f"entry {name!r}")
    if entry.kind != "TensorStorageMetadata":
        raise _NotAllowedError(f"entry {name!r} is not a tensor ({entry.kind}); reading it would unpickle it")
    fields: dict[str, Any] = entry.__dict__
    shape, dtype = _ints(fields["size"]), _dtype(fields["properties"])
    chunks = tuple(_chunk(name, dtype, shape, chunk, places) for chunk in fields["chunks"])
    covered = sum(math.prod(chunk.shape) for chunk in chunks)
    if covered != math.prod(shape) or len({chunk.offset for chunk in chunks}) != len(chunks):
        raise ValueError(f"the chunks of {name} do not cover it exactly once")
    return TensorRecord(name, dtype, shape, chunks)


def _dtype(properties: Any) -> torch.dtype:
    """torch/distributed/checkpoint/metadata.py, TensorProperties.__getstate__: (dtype, layout, requires_grad, ...)."""
    dtype = properties.state[0]
    if not isinstance(dtype, torch.dtype):
        raise TypeError("a tensor without a dtype")
    return dtype


def _chunk(name: str, dtype: torch.dtype, whole: tuple[int, ...], chunk: Any, places: _Places) -> Chunk:
    offset, shape = _ints(chunk.offsets), _ints(chunk.sizes)
    inside = len(offset) == len(shape) == len(whole)
    if not inside or any(o + s > w for o, s, w in zip(offset, shape, whole, strict=True)):
        raise ValueError(f"a chunk of {name} lies outside it: {offset} + {shape} of {whole}")
    info = places[name, offset]
    file = info.relative_path
    if not isinstance(file, str) or not _SHARD_FILE.fullmatch(file):
        raise _NotAllowedError(f"{name} points to {file!r}, which is no shard of this checkpoint")
    if getattr(info, "transform_descriptors", None):
        raise _NotAllowedError(f"{name} asks for a transformation of its bytes")
    start, length = _ints((info.offset, info.length))
    if length < math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {length} bytes for {shape} {dtype}")
    return Chunk(offset, shape, file, start, length)


def _ints(values: Any) -> tuple[int, ...]:
    result = tuple(values)
    if any(type(value) is not int or value < 0 for value in result):
        raise ValueError(f"{result!r} where sizes are expected")
    return result

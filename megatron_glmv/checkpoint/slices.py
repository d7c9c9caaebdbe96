"""Rows of a tensor of a checkpoint, without reading the chunk they lie in: memory is what is asked for.

A chunk is a torch.save archive: a zip whose entries are stored, not packed. So a tensor's bytes lie in the file as they
are; where, its data.pkl says, which is read with an unpickler that knows four names and makes nothing.

A row is one index over all axes before the last of a stack of matrices [E, R, C], of the first axis of anything else.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from megatron_glmv.checkpoint.archive import Window
from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.hf.safetensors import read_bytes
from megatron_glmv.checkpoint.index import Chunk, TensorRecord
from megatron_glmv.checkpoint.reader import Checkpoint

_PICKLE_BYTES = 4096
_LOCAL_HEADER = 30
"""Bytes of a zip entry's local header before its name and extra field; their lengths are its last four bytes."""


@dataclass
class Slices:
    """Reads rows of the weights of a checkpoint. Safe to use from several threads."""

    checkpoint: Checkpoint
    _starts: dict[Chunk, int] = field(default_factory=dict)

    def read(self, name: str, start: int, out: torch.Tensor) -> None:
        """Fills `out` [rows, width], of the tensor's dtype, with the rows from `start`. Raises ReadError."""
        record = self.checkpoint.tensors[name]
        inner = record.shape[1] if len(record.shape) == 3 else 1  # rows of one index of the first axis
        at = start
        while at < start + len(out):
            index, row = divmod(at, inner)
            count = start + len(out) - at
            offset: tuple[int, ...] = (index, *(0,) * (len(record.shape) - 1))
            shape: tuple[int, ...] = (count, *record.shape[1:])
            if len(record.shape) == 3:
                count = min(count, inner - row)
                offset, shape = (index, row, 0), (1, count, record.shape[2])
            part = out[at - start : at - start + count]
            self._box(record, offset, part.view(shape))
            at += count

    def _box(self, record: TensorRecord, offset: tuple[int, ...], target: torch.Tensor) -> None:
        for chunk in record.chunks:
            low = [max(o, c) for o, c in zip(offset, chunk.offset, strict=True)]
            high = [
                min(o + s, c + n) for o, s, c, n in zip(offset, target.shape, chunk.offset, chunk.shape, strict=True)
            ]
            if all(a < b for a, b in zip(low, high, strict=True)):
                self._copy(record, chunk, low, high, offset, target)

    def _copy(
        self,
        record: TensorRecord,
        chunk: Chunk,
        low: list[int],
        high: list[int],
        at: tuple[int, ...],
        out: torch.Tensor,
    ) -> None:
        local = [slice(a - c, b - c) for a, b, c in zip(low, high, chunk.offset, strict=True)]
        here = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, at, strict=True))
        depth = next((i for i, part in enumerate(local) if part.stop - part.start > 1), len(local) - 1)
        first = sum(part.start * math.prod(chunk.shape[i + 1 :]) for i, part in enumerate(local[: depth + 1]))
        wanted = out[here]
        whole = all(
            part.start == 0 and part.stop == n
            for part, n in zip(local[depth + 1 :], chunk.shape[depth + 1 :], strict=True)
        )
        shape = (*(1,) * depth, local[depth].stop - local[depth].start, *chunk.shape[depth + 1 :])
        path = self.checkpoint.path / chunk.file
        begin = self._start(chunk, record.dtype) + first * record.dtype.itemsize
        if whole and wanted.is_contiguous():
            read_bytes(path, begin, wanted)
            return
        held = torch.empty(shape, dtype=record.dtype)
        read_bytes(path, begin, held)
        wanted.copy_(held[(*(slice(None),) * (depth + 1), *local[depth + 1 :])])

    def _start(self, chunk: Chunk, dtype: torch.dtype) -> int:
        """The byte of the chunk's file at which its first element is."""
        if chunk not in self._starts:
            if chunk.file not in self.checkpoint.manifest.files:
                raise ReadError(f"{self.checkpoint.path / chunk.file} is not in the manifest")
            path = self.checkpoint.path / chunk.file
            try:
                with path.open("rb") as file:
                    self._starts[chunk] = _data_start(file, chunk, dtype)
            except ReadError as error:
                raise ReadError(f"{path}: {error}") from None
            except Exception as error:  # a damaged archive raises almost anything
                raise ReadError(f"{path}: {chunk.length} bytes from {chunk.start} are damaged: {error}") from None
        return self._starts[chunk]


def _data_start(file: IO[bytes], chunk: Chunk, dtype: torch.dtype) -> int:
    with zipfile.ZipFile(io.BufferedReader(Window(file, chunk.start, chunk.length))) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        described = entries["data.pkl"]
        if described.file_size > _PICKLE_BYTES or any(e.compress_type != zipfile.ZIP_STORED for e in entries.values()):
            raise ReadError("an archive that would grow when it is read")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise ReadError("an archive of a machine with another byte order")
        said = _Tensor(io.BytesIO(archive.read(described))).load()
    if not isinstance(said, _Layout):
        raise ReadError(f"bytes from {chunk.start} do not hold a tensor")
    strides = tuple(math.prod(chunk.shape[i + 1 :]) for i in range(len(chunk.shape)))
    if said.dtype != dtype or math.prod(said.shape) != math.prod(chunk.shape) or not said.dense:
        raise ReadError(f"bytes from {chunk.start} do not hold a {dtype} tensor of {chunk.shape}, strides {strides}")
    data = entries[f"data/{said.key}"]
    file.seek(chunk.start + data.header_offset)
    header = file.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    begin = data.header_offset + _LOCAL_HEADER + lengths
    size = math.prod(chunk.shape) * dtype.itemsize
    first = said.offset * dtype.itemsize
    if first + size > data.file_size or begin + data.file_size > chunk.length:
        raise ReadError(f"bytes from {chunk.start} do not hold {size} bytes of data")
    return chunk.start + begin + first


@dataclass(frozen=True)
class _Layout:
    key: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    dense: bool


_STORAGES = {
    "FloatStorage": torch.float32,
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "DoubleStorage": torch.float64,
}


class _Tensor(pickle.Unpickler):
    """Says what a tensor's pickle describes, and makes none."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _layout
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise ReadError(f"{module}.{name} has no place in a chunk")

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isdigit():
            raise ReadError(f"{pid!r} has no place in a chunk")
        return str(key), dtype


def _layout(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Layout:
    key, dtype = storage
    shape, strides = tuple(int(n) for n in shape), tuple(int(n) for n in strides)
    dense = int(offset) >= 0 and all(
        stride == math.prod(shape[i + 1 :]) or shape[i] == 1 for i, stride in enumerate(strides)
    )
    return _Layout(key, dtype, int(offset), shape, dense)

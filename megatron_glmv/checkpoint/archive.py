"""One chunk of a tensor from a shard file: a torch.save archive that is checked before torch allocates for it."""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, Any

import torch

from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.index import Chunk


def read_chunk(file: IO[bytes], chunk: Chunk, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of `chunk.shape` and `dtype`, on the CPU. Nothing but tensors is unpickled. Raises ReadError."""
    window = io.BufferedReader(Window(file, chunk.start, chunk.length))
    try:
        with zipfile.ZipFile(window) as archive:
            entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > chunk.length:
            raise ReadError("an archive that would grow when it is read")
        window.seek(0)
        tensor: Any = torch.load(window, map_location="cpu", weights_only=True)
    except ReadError:
        raise
    except Exception as error:  # a damaged archive raises almost anything
        reason = (str(error).splitlines() or [""])[0]
        raise ReadError(f"{chunk.length} bytes from {chunk.start} are damaged: {reason}") from None
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tensor.numel() != math.prod(chunk.shape):
        raise ReadError(f"bytes from {chunk.start} do not hold a {dtype} tensor of shape {chunk.shape}")
    return tensor.reshape(chunk.shape)


class Window(io.RawIOBase):
    """A read-only view of `length` bytes of a file from `start`: a chunk is read without a copy of its bytes."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

"""Messages between a rank and its decoder processes: JSON on a socket, tensors in an anonymous file passed with it.

The file has no name and vanishes with its last user, so a killed process leaves nothing behind, and it does not count
against the size of /dev/shm. A batch is mapped, not copied, by the receiver.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Mapping

import torch

from megatron_glmv.data.types import Json

_HEAD = struct.Struct("<Q")
_PAGE = 64
"""Alignment of tensors inside the file, in bytes."""
_DTYPES = {str(dtype): dtype for dtype in (torch.uint8, torch.bool, torch.int32, torch.int64, torch.float32)}


class Closed(Exception):
    """The other side is gone."""


def send(channel: socket.socket, message: Json, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
    """Raises Closed when the other side is gone."""
    places: list[tuple[str, str, list[int], int]] = []
    size = 0
    for name, tensor in (tensors or {}).items():
        places.append((name, str(tensor.dtype), list(tensor.shape), size))
        size += -(-tensor.nbytes // _PAGE) * _PAGE
    body = json.dumps({"message": message, "tensors": places, "size": size}).encode()
    descriptors: list[int] = []
    try:
        if size:
            descriptors.append(_file(size))
            with mmap.mmap(descriptors[0], size) as memory:
                for (_, _, _, offset), tensor in zip(places, (tensors or {}).values(), strict=True):
                    if tensor.nbytes:
                        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
                        flat.copy_(tensor.reshape(-1))
                        del flat
        socket.send_fds(channel, [_HEAD.pack(len(body))], descriptors)
        channel.sendall(body)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def receive(channel: socket.socket) -> tuple[Json, dict[str, torch.Tensor]]:
    """The next message and its tensors, which lie in memory of this process alone.

    Raises Closed when the other side is gone, TimeoutError after the socket's timeout.
    """
    try:
        head, descriptors, _, _ = socket.recv_fds(channel, _HEAD.size, 1)
        try:
            head += _exactly(channel, _HEAD.size - len(head))
            envelope: Json = json.loads(_exactly(channel, _HEAD.unpack(head)[0]))
            return envelope["message"], _tensors(envelope, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    except (ConnectionResetError, BrokenPipeError) as error:
        raise Closed from error


def _tensors(envelope: Json, descriptors: list[int] | array.array[int]) -> dict[str, torch.Tensor]:
    memory = None
    if envelope["size"]:
        memory = mmap.mmap(descriptors[0], envelope["size"], mmap.MAP_PRIVATE)
    out: dict[str, torch.Tensor] = {}
    for name, dtype, shape, offset in envelope["tensors"]:
        count = torch.Size(shape).numel()
        if count and memory is not None:
            flat = torch.frombuffer(memory, dtype=_DTYPES[dtype], count=count, offset=offset)
            out[name] = flat.reshape(shape)
        else:
            out[name] = torch.empty(shape, dtype=_DTYPES[dtype])
    return out


def _file(size: int) -> int:
    """An anonymous file of `size` bytes."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("glmv-batch")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = channel.recv(min(count, 1 << 20))
        if not part:
            raise Closed
        parts.append(part)
        count -= len(part)
    return b"".join(parts)

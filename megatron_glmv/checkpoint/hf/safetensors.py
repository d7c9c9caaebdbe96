"""safetensors files, read and written in slices; nothing is believed before it is checked.

    8 bytes      length of the header, little endian
    header       JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}
    data         the tensors one behind the other, without holes

(https://github.com/huggingface/safetensors, format). The library maps a file or reads tensors whole; here a slice of
rows goes straight into memory that the caller has counted.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_glmv.checkpoint.errors import ReadError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 32 << 20
"""Bytes of a header. GLM-4.5V in a single file needs 3 MB; a longer one is made to exhaust memory."""
MAX_JSON = 64 << 20
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")


@dataclass(frozen=True)
class Stored:
    """A tensor and where its bytes are: from `start` of `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int


def read_directory(directory: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint in one file or in several with an index.

    Raises ReadError for a pickle, a damaged or hostile header, a file outside the directory, or an index that does not
    say what the files say.
    """
    if not directory.is_dir():
        raise ReadError(f"{directory} is not a directory")
    if (directory / INDEX).exists():
        named = _weight_map(directory / INDEX)
        files = sorted(set(named.values()))
    elif (directory / SINGLE).exists():
        named, files = {}, [SINGLE]
    else:
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        also = f"; {pickles[0]} can run code when it is read, and is not" if pickles else ""
        raise ReadError(f"{directory} has neither {INDEX} nor {SINGLE}{also}")
    found: dict[str, Stored] = {}
    for file in files:
        for name, tensor in read_header(inside(directory, file)).items():
            if name in found:
                raise ReadError(f"{directory}: {name} is in {found[name].file.name} and in {file}")
            if named and named.get(name) != file:
                raise ReadError(f"{directory / INDEX} has {name} in {named.get(name)}, and it is in {file}")
            found[name] = tensor
    lost = [name for name in named if name not in found]
    if lost:
        raise ReadError(f"{directory / INDEX} lists {len(lost)} tensors that are in no file: {', '.join(lost[:8])}")
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one file; sizes are compared with the file's before anything else is done with them."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ReadError(
                    f"{path}: a header of {length} bytes in a file of {size}; at most {MAX_HEADER} are read"
                )
            content = json.loads(file.read(length), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"{path} is not a safetensors file: {_line(error)}") from None
    if not isinstance(content, dict):
        raise ReadError(f"{path} is not a safetensors file: its header is no object")
    content.pop("__metadata__", None)
    tensors, at = {}, 0
    try:
        for name, entry in sorted(content.items(), key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if any(type(n) is not int or n < 0 for n in (begin, end, *shape)) or len(shape) > 8:
                raise ValueError(f"{name} has the shape {shape} at {begin}..{end}")
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name} is {entry['dtype']}; weights can be {', '.join(DTYPES)}")
            dtype = DTYPES[entry["dtype"]]
            if begin != at or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} {entry['dtype']} {shape} has the bytes {begin}..{end}")
            tensors[name] = Stored(name, dtype, shape, path, 8 + length + begin)
            at = end
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ReadError(f"{path} is damaged: {type(error).__name__}: {_line(error)}") from None
    if 8 + length + at != size:
        raise ReadError(f"{path} is damaged: its tensors end at {8 + length + at}, the file at {size}")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises ReadError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_JSON + 1)
        content = json.loads(text) if len(text) <= MAX_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"{path} cannot be read: {_line(error)}") from None
    if not isinstance(content, dict):
        raise ReadError(f"{path} is no JSON object of at most {MAX_JSON} bytes")
    return content


def inside(directory: Path, name: str) -> Path:
    """A file of the directory. A link may lead elsewhere in it, or to the blobs beside the snapshots of a hub's cache.

    Raises ReadError."""
    path = (directory / name).resolve()
    home = directory.resolve()
    allowed = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    if not any(path.is_relative_to(place) for place in allowed):
        raise ReadError(f"{directory / name} leads out of the directory")
    if not path.is_file():
        raise ReadError(f"{directory / name} is missing")
    return path


def read_bytes(path: Path, start: int, out: torch.Tensor) -> None:
    """Fills a contiguous tensor with the bytes from `start` of a file; nothing is copied on the way."""
    if out.numel() == 0:
        return
    view = memoryview(out.view(-1).view(torch.uint8).numpy().data)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        while view:
            count = os.preadv(descriptor, [view], start)
            if count == 0:
                raise ReadError(f"{path} ends before byte {start + len(view)}")
            view, start = view[count:], start + count
    except OSError as error:
        raise ReadError(f"{path} cannot be read: {error}") from None
    finally:
        os.close(descriptor)


def make_header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """What goes before the data of `tensors`, in their order."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without it
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        content[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _weight_map(path: Path) -> dict[str, str]:
    named = read_json(path).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ReadError(f"{path} has no weight_map")
    for name, file in named.items():
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise ReadError(f"{path}: {name} is in {file!r}, which is no safetensors file of this directory")
    return named


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is there twice")
    return made


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]

"""transformers' checkpoint, or a text model and an encoder to start pre-training from, to ours.

    OUT/checkpoints/step_0    a checkpoint without optimizer (docs/checkpoint_format.md): init_from=OUT, --ckpt OUT
    OUT/tokenizer             the tokenizer, whose fingerprint the checkpoint has
    OUT/hf                    config, generation config, processor, chat template, as they came; an export takes them

The tensors are cut into chunks of at most CHUNK bytes, an expert each at most, and written as torch.save archives into
files of about FILE bytes. Where they are cut depends on the model alone, so neither workers nor memory limits nor a
kill in between change a byte of the result.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp

import megatron_glmv
from megatron_glmv.checkpoint import index, manifest
from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.hf.assets import carried, tokenizer_of
from megatron_glmv.checkpoint.hf.mapping import Entry, NameMapping
from megatron_glmv.checkpoint.hf.memory import Watch, plan_workers, readable
from megatron_glmv.checkpoint.hf.progress import Progress
from megatron_glmv.checkpoint.hf.rows import Rows, open_hf
from megatron_glmv.checkpoint.hf.safetensors import Stored
from megatron_glmv.checkpoint.hf.start import StartOptions, StartRows, open_start
from megatron_glmv.checkpoint.hf.work import HashedFile, Piece, Workspace, check_target
from megatron_glmv.checkpoint.manifest import FileRecord, Manifest
from megatron_glmv.checkpoint.reader import MCORE_CONFIG, MCORE_CONFIG_FILE, STATE_FILE

Json = dict[str, Any]
CHUNK = 64 << 20
"""Bytes of a chunk at most: what a worker holds."""
FILE = 512 << 20
"""Bytes of a file, about: what a killed run loses per worker at most."""
STEP = "checkpoints/step_0"


@dataclass(frozen=True)
class Part:
    """A box of one of our tensors: `rows` rows from `start`."""

    entry: Entry
    dtype: torch.dtype
    start: int
    rows: int

    @property
    def bytes(self) -> int:
        return self.rows * self.entry.width * self.dtype.itemsize

    @property
    def box(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offset and shape in the tensor."""
        shape = self.entry.ours.shape
        if len(shape) == 3:
            return (self.start // shape[1], self.start % shape[1], 0), (1, self.rows, shape[2])
        return (self.start, *(0,) * (len(shape) - 1)), (self.rows, *shape[1:])


class Source(Rows, Protocol):
    """What is imported."""

    @property
    def mapping(self) -> NameMapping: ...

    @property
    def stored(self) -> dict[str, Stored]: ...

    @property
    def left_out(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class ImportOptions:
    source: Path | StartOptions
    """Directory of transformers', or what pre-training starts from."""
    out: Path
    tokenizer: Path | None = None
    without_tokenizer: bool = False
    """Allowed for a checkpoint that is only scored: nothing can be trained or asked."""
    allow_rounded_bias: bool = False
    """Take an expert bias that is not float32 on disk: its rounding sends tokens to other experts."""
    workers: int | None = None
    memory_limit: int | None = None
    mtp: bool = False
    """Keep the prediction layer; else it is left out."""


@dataclass(frozen=True)
class Summary:
    """What a conversion did. Bytes."""

    path: Path
    tensors: int
    bytes: int
    resumed: int
    """Of these, made by an earlier run."""
    workers: int = 0
    expected_memory: int = 0
    peak_memory: int = 0
    mapped_files: int = 0

    def __str__(self) -> str:
        if not self.workers:
            return f"{self.path}: was done already"
        return (
            f"{self.path}: {self.tensors} tensors, {readable(self.bytes)}; memory {readable(self.peak_memory)} at most "
            f"(expected {readable(self.expected_memory)}), files mapped {readable(self.mapped_files)}"
        )


def import_hf(options: ImportOptions, say: Any = lambda line: None) -> Summary:
    """Runs the import, or goes on where a killed one was. Raises ConfigError, ReadError, MismatchError, SaveError.

    `say` gets lines for a person: what will be done, before it is.
    """
    given = options.source
    source: Source
    source = open_start(given, options.mtp) if isinstance(given, StartOptions) else open_hf(given, options.mtp)
    if source.left_out:
        count, first = len(source.left_out), source.left_out[0]
        say(f"left out: the prediction layer, {count} tensors ({first}, ...); --mtp keeps it")
    words = tokenizer_of(options.tokenizer or source.path, options.without_tokenizer)
    files = carried(source.path)
    if isinstance(source, StartRows):
        files.pop("config.json")  # a text model's
        say(f"fresh, from seed {source.options.seed}: {', '.join(source.fresh)}")
    parts = list(_parts(source, options.allow_rounded_bias))
    total = sum(part.bytes for part in parts)
    space = Workspace(options.out, _identity(source, options, words.fingerprint))
    if check_target(options.out, _plan_of(options.out), space.plan):
        return Summary(options.out, len(source.mapping.theirs), total, total)
    pieces = [_piece(source, f"{STEP}/__{i}_0.distcp", group) for i, group in enumerate(_grouped(parts))]
    workers, expected = plan_workers(options.workers, CHUNK + (8 << 20), options.memory_limit, os.cpu_count() or 1)
    space.open()
    try:
        resumed = sum(piece.bytes for piece in pieces if piece.name in space.done)
        say(_promise(source, total, resumed, len(pieces), workers, expected))
        watch = Watch()
        space.run(pieces, workers, Progress("import"), watch)
        for name, data in words.files.items():
            space.write(f"tokenizer/{name}", data)
        for name, data in files.items():
            space.write(f"hf/{name}", data)
        _commit(space, source, pieces, parts, words.fingerprint)
        space.finish()
    finally:
        space.close()
    return Summary(options.out, len(source.mapping.theirs), total, resumed, workers, expected, watch.peak, watch.files)


def _parts(source: Source, allow_rounded_bias: bool) -> Iterator[Part]:
    for entry in source.mapping.entries:
        dtype = source.dtype(entry.ours.name)
        if entry.ours.exact and dtype != torch.float32:
            if not allow_rounded_bias:
                raise MismatchError(
                    f"{source.path}: {entry.spans[0].name} is {dtype}; rounded from float32 it sends tokens to other "
                    "experts. --allow-rounded-bias takes it all the same"
                )
            dtype = torch.float32
        inner = entry.ours.shape[1] if len(entry.ours.shape) == 3 else entry.rows
        step = max(1, CHUNK // max(1, entry.width * dtype.itemsize))
        for begin in range(0, entry.rows, inner):  # a stack's chunks do not reach from one expert into the next
            for start in range(begin, begin + inner, step):
                yield Part(entry, dtype, start, min(step, begin + inner - start))


def _grouped(parts: Sequence[Part]) -> Iterator[list[Part]]:
    group: list[Part] = []
    for part in parts:
        if group and sum(p.bytes for p in group) + part.bytes > FILE:
            yield group
            group = []
        group.append(part)
    yield group


def _piece(source: Source, name: str, parts: Sequence[Part]) -> Piece:
    def write(file: HashedFile) -> list[list[int]]:
        """Returns start and length of each part's archive."""
        buffer = np.empty(max(part.bytes for part in parts), np.uint8)  # one, so that no heap grows holes
        places = []
        for part in parts:
            rows = torch.frombuffer(buffer, dtype=part.dtype, count=part.rows * part.entry.width)
            rows = rows.view(part.rows, part.entry.width)
            stored = source.dtype(part.entry.ours.name)
            if stored == part.dtype:
                source.read(part.entry.ours.name, part.start, rows)
            else:
                given = torch.empty(rows.shape, dtype=stored)
                source.read(part.entry.ours.name, part.start, given)
                rows.copy_(given)
            start = file.bytes
            torch.save(rows.view(part.box[1]), cast(IO[bytes], _Offset(file)))
            places.append([start, file.bytes - start])
        return places

    return Piece(name, sum(part.bytes + 1024 for part in parts), write)


class _Offset:
    """A hashed file from here on: torch.save makes an archive of its own, wherever in the file it lies."""

    def __init__(self, file: HashedFile) -> None:
        self.write, self.flush = file.write, file.flush


def _commit(space: Workspace, source: Source, pieces: Sequence[Piece], parts: Sequence[Part], fingerprint: str) -> None:
    """Index, state and, last, the manifest."""
    left = iter(parts)
    tensors: dict[str, Any] = {}
    storage: dict[Any, Any] = {}
    records: dict[str, FileRecord] = {}
    for piece in pieces:
        done = space.done[piece.name]
        file = piece.name.rpartition("/")[2]
        records[file] = done.record
        for start, length in done.note:
            part = next(left)
            offset, shape = part.box
            ours = part.entry.ours
            entry = tensors.setdefault(
                ours.name, dcp.TensorStorageMetadata(dcp.TensorProperties(part.dtype), torch.Size(ours.shape), [])
            )
            key = dcp.MetadataIndex(ours.name, torch.Size(offset), len(entry.chunks))
            entry.chunks.append(dcp.ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)))
            storage[key] = filesystem._StorageInfo(file, start, length)
    if next(left, None) is not None:
        raise AssertionError("a chunk is in no file")
    content = {"step": 0, "optimizer_step": 0, "trainer": {"imported": {"plan": space.plan}}}
    common = {
        index.NAME: pickle.dumps(dcp.Metadata(tensors, storage_data=storage)),
        STATE_FILE: json.dumps(content, indent=1).encode() + b"\n",
        MCORE_CONFIG_FILE: json.dumps(MCORE_CONFIG).encode() + b"\n",
    }
    for name, data in common.items():
        records[name] = space.write(f"{STEP}/{name}", data)
    made = Manifest(
        step=0,
        optimizer=False,
        model=json.loads(json.dumps(asdict(source.model))),
        tokenizer_fingerprint=fingerprint,
        config_fingerprint="",
        topology={},
        package_version=megatron_glmv.__version__,
        libraries={"torch": packages.version("torch")},
        files=records,
    )
    space.write(f"{STEP}/{manifest.NAME}", made.to_json().encode())


def _identity(source: Source, options: ImportOptions, fingerprint: str) -> Json:
    """What decides the result's bytes. Times of files stand for what is in them."""
    files = sorted({tensor.file for tensor in source.stored.values()})
    start = options.source if isinstance(options.source, StartOptions) else None
    return {
        "work": "import",
        "start": [start.patch_init, start.seed] if start else None,
        "version": [megatron_glmv.__version__, packages.version("torch")],
        "model": asdict(source.model),
        "sources": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "tensors": sorted([n, str(t.dtype), list(t.shape), t.file.name, t.start] for n, t in source.stored.items()),
        "tokenizer": fingerprint,
        "rounded": options.allow_rounded_bias,
    }


def _plan_of(out: Path) -> str | None:
    """The work that a finished directory says it is."""
    try:
        content = json.loads((out / STEP / STATE_FILE).read_text("utf-8"))
        return str(content["trainer"]["imported"]["plan"]) if (out / STEP / manifest.NAME).is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _promise(source: Source, total: int, resumed: int, files: int, workers: int, expected: int) -> str:
    again = f", {readable(resumed)} of it there from an earlier run" if resumed else ""
    return (
        f"{source.path}: {source.model.name}, {len(source.mapping.theirs)} tensors, {readable(total)} to {files} files"
        f"{again}; {workers} workers, at most {readable(expected)} of memory"
    )

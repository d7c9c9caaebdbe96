"""Whether two checkpoints, of either format, hold the same weights in every bit, and which tensor does not.

Both sides are read in slices of rows of our tensors, so that experts may be fused on one side and not on the other, and
neither is ever held whole. Differences are named as transformers has them on disk, experts one by one, with what they
look like: swapped with another tensor of its kind, transposed, rounded to bf16, zeroed, rows in another order.

Files are held against the sha256 that was written with them, too: those of a checkpoint of ours, and of an export.

The dtype policy: weights are compared as stored; if one side is bf16 and the other fp32, values have to be equal after
rounding the finer one (`round_to`), which the report says. An expert bias has to be float32 on both sides, and equal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.hf.exporting import RECORD, read_theirs
from megatron_glmv.checkpoint.hf.mapping import LISTED, NameMapping, Shaped, name_mapping
from megatron_glmv.checkpoint.hf.memory import Watch, plan_workers, readable
from megatron_glmv.checkpoint.hf.progress import Progress
from megatron_glmv.checkpoint.hf.rows import OurRows, Rows, open_rows
from megatron_glmv.checkpoint.hf.safetensors import inside, read_json
from megatron_glmv.checkpoint.identity import model_differences
from megatron_glmv.checkpoint.manifest import FileRecord, hash_file
from megatron_glmv.resilience.exit_codes import ExitCode

SLICE = 16 << 20
"""Bytes of a slice; a worker holds one of each side and what comparing them needs."""
EXPLAINED = 16
"""Differing tensors whose kind of difference is looked for; it reads them again, and their like."""
WHOLE = 128 << 20
"""Bytes of a tensor that is held whole to look for what happened to it."""


@dataclass(frozen=True)
class Difference:
    """One tensor that is not the same."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """What was compared, and what differs."""

    a: Path
    b: Path
    tensors: int
    bytes: int
    rounded: int
    """Tensors stored finer on one side, compared after rounding."""
    differences: tuple[Difference, ...]
    peak_memory: int
    files: int = 0
    """Files of both sides whose sha256 was known, and compared."""

    def __str__(self) -> str:
        rounded = f", {self.rounded} of them rounded to bfloat16 first" if self.rounded else ""
        files = f", {self.files} files with their sha256" if self.files else ""
        head = f"{self.tensors} tensors, {readable(self.bytes)}{rounded}{files}; "
        head += f"memory {readable(self.peak_memory)} at most"
        if not self.differences:
            return f"equal in every bit: {head}"
        shown = [f"  {difference}" for difference in self.differences[:LISTED]]
        if len(self.differences) > LISTED:
            shown.append(f"  and {len(self.differences) - LISTED} more")
        return "\n".join([f"{len(self.differences)} differ: {head}", *shown])

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        return {**content, "a": str(self.a), "b": str(self.b), "equal": not self.differences}

    @property
    def exit_code(self) -> int:
        return int(ExitCode.CORRUPT if self.differences else ExitCode.OK)


def verify(
    a: Path, b: Path, *, round_to: str = "", workers: int | None = None, memory_limit: int | None = None
) -> Verdict:
    """Compares every tensor. `round_to` bf16: a side in fp32 may be the finer of the two.

    Raises ReadError, and MismatchError where a tensor is missing, unknown or misshapen on one side."""
    left, right = open_rows(a), open_rows(b)
    fields = [Difference("config", line) for line in model_differences(asdict(left.model), asdict(right.model))]
    mapping = name_mapping(left.model)
    if mapping.theirs != name_mapping(right.model).theirs:
        return Verdict(a, b, 0, 0, 0, tuple(fields), 0)
    count, expected = plan_workers(workers, 6 * SLICE, memory_limit, os.cpu_count() or 1)
    explains = EXPLAINED if not memory_limit or expected + 4 * WHOLE <= memory_limit else 0
    total = sum(t.numel * _finest(left, right, mapping, t.name).itemsize for t in mapping.theirs.values())
    hashed = [*_hashed(left), *_hashed(right)]
    progress, watch = Progress("verify"), Watch()
    progress.start(total + sum(record.bytes for _, record in hashed))

    def compare(shaped: Shaped) -> tuple[bool, Difference | None]:
        found = _compare(left, right, mapping, shaped, round_to == "bf16")
        progress.advance(shaped.numel * _finest(left, right, mapping, shaped.name).itemsize)
        return found

    def check(path: Path, record: FileRecord) -> Difference | None:
        try:
            sound = hash_file(path) == record
        except OSError as error:
            return Difference(str(path), f"cannot be read: {error}")
        progress.advance(record.bytes)
        return None if sound else Difference(str(path), "does not have the sha256 it was written with")

    with ThreadPoolExecutor(count) as pool, watch, progress:
        fields += (
            [found for found in pool.map(check, *zip(*hashed, strict=True)) if found is not None] if hashed else []
        )
        results = list(pool.map(compare, mapping.theirs.values()))
        found = [difference for _, difference in results if difference is not None]
        names = {difference.name for difference in found}
        explained = fields + [
            _explain(left, right, mapping, difference, names) if i < explains else difference
            for i, difference in enumerate(found)
        ]
    rounded = sum(was_rounded for was_rounded, _ in results)
    return Verdict(a, b, len(mapping.theirs), total, rounded, tuple(explained), watch.peak, len(hashed))


def _hashed(side: Rows) -> list[tuple[Path, FileRecord]]:
    """Files with weights whose sha256 was written with them."""
    if isinstance(side, OurRows):
        return [(side.path / name, record) for name, record in sorted(side.checkpoint.manifest.files.items())]
    if not (side.path / RECORD).is_file():
        return []
    listed = read_json(side.path / RECORD).get("files", {})
    try:
        records = {str(n): FileRecord(bytes=int(r["bytes"]), sha256=str(r["sha256"])) for n, r in listed.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ReadError(f"{side.path / RECORD} is damaged") from None
    return [(inside(side.path, n), record) for n, record in sorted(records.items()) if n.endswith(".safetensors")]


def _finest(left: Rows, right: Rows, mapping: NameMapping, name: str) -> torch.dtype:
    ours = mapping.sources[name].ours.name
    return max(left.dtype(ours), right.dtype(ours), key=lambda dtype: dtype.itemsize)


def _compare(
    left: Rows, right: Rows, mapping: NameMapping, shaped: Shaped, may_round: bool
) -> tuple[bool, Difference | None]:
    """Whether it was rounded, and the difference."""
    ours = mapping.sources[shaped.name].ours.name
    kinds = (left.dtype(ours), right.dtype(ours))
    if shaped.exact and kinds != (torch.float32, torch.float32):
        return False, Difference(shaped.name, f"has to be float32 on both sides; it is {kinds[0]} and {kinds[1]}")
    rounds = kinds[0] != kinds[1]
    if rounds and (not may_round or torch.bfloat16 not in kinds):
        return False, Difference(shaped.name, f"is {kinds[0]} and {kinds[1]}")
    differing = first = 0
    for at, x, y in _both(left, right, mapping, shaped.name):
        if rounds:
            x, y = x.bfloat16(), y.bfloat16()
        bits = torch.int32 if x.element_size() == 4 else torch.int16
        unequal = (x.view(bits) != y.view(bits)).view(-1)
        count = int(unequal.count_nonzero())
        if count and not differing:
            first = at + int(unequal.nonzero()[0])
        differing += count
    if not differing:
        return rounds, None
    place = tuple(int(i) for i in np.unravel_index(first, shaped.shape))
    return rounds, Difference(shaped.name, f"{differing} of {shaped.numel} elements differ, the first at {place}")


def _both(left: Rows, right: Rows, mapping: NameMapping, name: str) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Index of the first element, and the same rows of both sides."""
    entry = mapping.sources[name]
    rows = [max(1, SLICE // (entry.width * 4))] * 2
    sizes = [side.dtype(entry.ours.name).itemsize for side in (left, right)]
    buffers = [np.empty(count * entry.width * size, np.uint8) for count, size in zip(rows, sizes, strict=True)]
    at = 0
    sides = [read_theirs(side, mapping, name, buffer) for side, buffer in zip((left, right), buffers, strict=True)]
    for x, y in zip(*sides, strict=True):
        yield at, x, y
        at += x.numel()


def _whole(side: Rows, mapping: NameMapping, name: str) -> torch.Tensor:
    entry = mapping.sources[name]
    size = mapping.theirs[name].numel * side.dtype(entry.ours.name).itemsize
    (rows,) = read_theirs(side, mapping, name, np.empty(max(size, 1), np.uint8))
    return rows.view(mapping.theirs[name].shape)


def _explain(left: Rows, right: Rows, mapping: NameMapping, found: Difference, differing: set[str]) -> Difference:
    """The same difference with what happened, where that can be seen from the two sides."""
    name, shaped = found.name, mapping.theirs[found.name]
    if "elements differ" not in found.what or shaped.numel * 4 > WHOLE:
        return found
    x, y = _whole(left, mapping, name), _whole(right, mapping, name)
    said = _looks(x, y)
    if not said:
        for other in sorted(differing - {name}):
            if mapping.theirs[other].shape == shaped.shape and torch.equal(x, _whole(right, mapping, other)):
                said = f"B has it in {other}"
                break
    return Difference(name, f"{found.what}; {said}") if said else found


def _looks(x: torch.Tensor, y: torch.Tensor) -> str:
    for zeroed, side in ((x, "A"), (y, "B")):
        if not zeroed.any():
            return f"it is all zero in {side}"
    if x.dtype == torch.float32 and y.dtype == torch.float32:
        for exact, rounded, side in ((x, y, "B"), (y, x, "A")):
            if torch.equal(exact.bfloat16().float(), rounded):
                return f"it is rounded to bfloat16 in {side}"
    if x.dim() == 2 and x.shape[0] == x.shape[1] and torch.equal(x.T, y):
        return "it is transposed"
    if x.dtype == y.dtype and x.dim() >= 1 and _sorted_rows(x) == _sorted_rows(y):
        return "its rows are in another order"
    bits = torch.int32 if x.element_size() == 4 else torch.int16
    changed = (x.contiguous().view(bits) ^ y.contiguous().view(bits)).view(-1)
    changed = changed[changed != 0]
    if changed.numel() == 1:
        count = bin(int(changed[0]) & ((1 << (8 * x.element_size())) - 1)).count("1")
        return f"{count} bit{'s' * (count > 1)} flipped"
    return ""


def _sorted_rows(x: torch.Tensor) -> list[bytes]:
    rows: Any = x.reshape(x.shape[0], -1).contiguous().view(torch.uint8).numpy()
    return sorted(hashlib.blake2b(row, digest_size=16).digest() for row in rows)

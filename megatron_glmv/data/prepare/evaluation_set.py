"""What evaluation files hold, as something that training samples are looked up in.

Shapes: K numbers of word sequences; H hashes of pictures and frames.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_glmv.data.errors import DataError, SampleError
from megatron_glmv.data.make import inside
from megatron_glmv.data.prepare import hashing, ngrams, text
from megatron_glmv.data.prepare.inspect import medium_facts
from megatron_glmv.data.prepare.options import ContaminationOptions
from megatron_glmv.data.types import IMAGE, VIDEO, Json

VERSION = 1
NOT_TEXT = {"id", "domain", "source", "split", "type", "image", "images", "video", "videos", "messages", "license"}
"""Fields of a line that are no part of a question or answer."""


@dataclass(frozen=True)
class EvaluationSet:
    """Sorted numbers of sequences by their length in words, and hashes; each with the name of an item that has it."""

    sequences: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]]
    """n -> (numbers [K] sorted, items [K])."""
    hashes: hashing.Hash
    """[H, 32]"""
    hash_items: NDArray[np.int64]
    """[H]"""
    names: tuple[str, ...]

    def text_match(self, words: list[str]) -> str:
        """`13 words of FILE:LINE`, or an empty string."""
        found = ngrams.numbers(words)
        for n in sorted(self.sequences, reverse=True):
            known, items = self.sequences[n]
            asked = ngrams.sequences(found, n)
            at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
            hits = np.flatnonzero(known[at] == asked)
            if len(hits):
                return f"{n} words of {self.names[int(items[at[hits[0]]])]}"
        return ""

    def picture_match(self, hashes: hashing.Hash, distance: int) -> str:
        """`picture of FILE:LINE, 3 bits apart`, or an empty string. A clip matches with half of its frames."""
        if not len(self.hashes):
            return ""
        need = (len(hashes) + 1) // 2
        met: dict[int, list[int]] = defaultdict(list)
        for row in hashes:
            apart = hashing.bits_between(self.hashes, row[None])
            best: dict[int, int] = {}
            for at in np.flatnonzero(apart <= distance).tolist():
                item = int(self.hash_items[at])
                best[item] = min(best.get(item, 256), int(apart[at]))
            for item, bits in best.items():
                met[item].append(bits)
        for item, found in sorted(met.items()):
            if len(found) >= need:
                return f"picture of {self.names[item]}, {min(found)} bits apart"
        return ""


def identity(files: tuple[str, ...]) -> list[list[object]]:
    """Name and sha256 of each file; their media are as good as named by it. Raises DataError."""
    found: list[list[object]] = []
    for file in files:
        try:
            found.append([Path(file).name, hashlib.sha256(Path(file).read_bytes()).hexdigest()])
        except OSError as e:
            raise DataError(file, f"contamination.files: {e.strerror}") from e
    return found


def read(options: ContaminationOptions) -> EvaluationSet:
    """Raises DataError on a line that is not JSON or a medium that does not decode: an evaluation item that is passed
    over would look clean."""
    names: list[str] = []
    items: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    hashes: list[hashing.Hash] = []
    owners: list[int] = []
    for file in map(Path, options.files):
        for name, line in _lines(file):
            item = len(names)
            names.append(name)
            for found in texts(line):
                _add(items, text.words(found), item, options)
            for kind, medium in media(line):
                try:
                    data = inside(file.parent, medium).read_bytes()
                    rows = hashing.from_text(medium_facts(kind, medium, data)["hash"])
                except SampleError as e:
                    raise DataError(name, f"contamination.files: {e}") from e
                hashes.append(rows)
                owners += [item] * len(rows)
    sequences = {}
    for n, found_items in items.items():
        kept = {number: min(of) for number, of in found_items.items() if len(of) <= options.max_items}
        if kept:
            known = np.array(sorted(kept), np.uint64)
            sequences[n] = known, np.array([kept[int(number)] for number in known], np.int64)
    rows = np.concatenate(hashes) if hashes else np.zeros((0, hashing.BYTES), np.uint8)
    return EvaluationSet(sequences, rows, np.array(owners, np.int64), tuple(names))


def _lines(file: Path) -> Iterator[tuple[str, Json]]:
    with io.BytesIO(file.read_bytes()) as lines:
        for number, raw in enumerate(lines, 1):
            if not raw.strip():
                continue
            name = f"{file.name}:{number}"
            try:
                line = json.loads(raw)
            except ValueError as e:
                raise DataError(name, f"contamination.files: not JSON: {e}") from e
            if not isinstance(line, dict):
                raise DataError(name, "contamination.files: not a JSON object")
            yield name, line


def _add(items: dict[int, dict[int, set[int]]], words: list[str], item: int, options: ContaminationOptions) -> None:
    n = min(len(words), options.ngram)
    if n >= options.min_ngram:
        for number in ngrams.sequences(ngrams.numbers(words), n).tolist():
            items[n][number].add(item)


def texts(line: Json) -> Iterator[str]:
    """Texts of messages one by one, and of every other field that is text or a list of texts."""
    if isinstance(line.get("messages"), list):
        yield from text.pieces(line)
    for name, value in line.items():
        if name not in NOT_TEXT:
            yield from (found for found in (value if isinstance(value, list) else [value]) if isinstance(found, str))


def media(line: Json) -> Iterator[tuple[str, str]]:
    """(kind, path) of media in messages, and in the fields image(s) and video(s)."""
    for message in line.get("messages") or ():
        for part in message.get("content") or ():
            if isinstance(part, dict) and part.get("type") in (IMAGE, VIDEO):
                yield part["type"], str(part[part["type"]])
    for kind in (IMAGE, VIDEO):
        for name in (kind, f"{kind}s"):
            value = line.get(name) or ()
            for path in [value] if isinstance(value, str) else value:
                if isinstance(path, str):
                    yield kind, path

"""The demo set: training and validation shards, an evaluation file and a tokenizer, all from one seed.

DIR/train/*.tar, index.json(l)    DIR/val/*.tar, index.json(l)    DIR/eval/eval.jsonl, media/
DIR/tokenizer/tokenizer.json      DIR/demo.json: the parameters, and that everything is there (written last)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import build_index
from megatron_glmv.data.processes import process_pool
from megatron_glmv.data.progress import track
from megatron_glmv.data.shards import ShardWriter
from megatron_glmv.data.synthetic.conversation import Sample, make_sample
from megatron_glmv.data.synthetic.family import TEXT
from megatron_glmv.data.synthetic.heldout import write_eval
from megatron_glmv.data.synthetic.registry import FAMILIES
from megatron_glmv.data.synthetic.seeds import EVAL, TRAIN, VAL, stream
from megatron_glmv.data.tokenizer import train_tokenizer
from megatron_glmv.data.types import IMAGE, VIDEO, Json

MANIFEST = "demo.json"
PARTS = (TRAIN, VAL, EVAL, "tokenizer")
SHARES = {"still": 7, "chart": 1, "clip": 3, "lights": 3, "cycle": 2, "text": 1}
"""Weight of a family among those of its domain. Charts are hard: a taste of them, not a burden."""
EVAL_ITEMS = 200
"""Held-out scenes of each family, so lines of each task."""
VAL_DIVISOR = 30
"""One validation sample for as many training samples of a family."""
VOCAB = 512
SAMPLES_PER_SHARD = 1000
CHUNK = 50
"""Samples that one process makes at a time."""

Job = tuple[str, int]
"""(family, index)."""


@dataclass(frozen=True)
class Summary:
    """What a finished set holds."""

    samples: dict[str, int]
    """Training samples by family."""
    val_samples: int
    eval_lines: int
    media_bytes: int
    """Bytes of all training media."""
    reused: bool = False
    """True where a finished set was found."""


def make_demo(
    out: Path,
    *,
    train_images: int,
    train_videos: int,
    train_text: int,
    eval_items: int = EVAL_ITEMS,
    seed: int = 0,
    workers: int = 2,
) -> Summary:
    """Make the demo set in `out`, or find it there: a finished one with the same parameters is kept.

    Equal parameters give equal bytes whatever `workers` is (0 makes everything in this process). What an earlier call
    made of another set, or left half made, is removed first. Raises DataError where `out` holds something else,
    ValueError on a negative count.
    """
    out = Path(out)
    counts = {IMAGE: train_images, VIDEO: train_videos, TEXT: train_text}
    parameters: Json = {"train": counts, "eval": eval_items, "seed": seed, "generator": _source_hash()}
    train, val = _plan(counts, seed, TRAIN), _plan({k: -(-n // VAL_DIVISOR) for k, n in counts.items()}, seed, VAL)
    if finished := _finished(out, parameters):
        return finished
    _claim(out, {"complete": False, "parameters": parameters})
    texts: Counter[str] = Counter()
    with ExitStack() as stack:
        pool = stack.enter_context(process_pool(workers)) if workers else None
        media_bytes = _write_shards(out / TRAIN, _make(pool, train, seed, TRAIN), texts)
        _write_shards(out / VAL, _make(pool, val, seed, VAL), Counter())
        held_out = [(family, index) for family in FAMILIES for index in range(eval_items)]
        lines = write_eval(out / EVAL, _make(pool, held_out, seed, EVAL))
    for split in (TRAIN, VAL):
        build_index(out / split, workers)
    train_tokenizer(chain.from_iterable([text] * n for text, n in sorted(texts.items())), out / "tokenizer", VOCAB)
    summary = Summary(dict(sorted(Counter(family for family, _ in train).items())), len(val), lines, media_bytes)
    _write_manifest(out, {"complete": True, "parameters": parameters, "summary": asdict(summary)})
    return summary


def _plan(counts: dict[str, int], seed: int, split: str) -> list[Job]:
    """The samples of a split in a random order of families, so that every shard holds a like mixture."""
    jobs: list[Job] = []
    for domain, count in counts.items():
        if count < 0:
            raise ValueError(f"{count} samples of {domain}: a count must not be negative")
        names = [name for name, family in FAMILIES.items() if family.domain == domain]
        bounds = np.cumsum([0, *(SHARES[name] for name in names)]) * count // sum(SHARES[name] for name in names)
        jobs += [
            (name, i) for name, few, many in zip(names, bounds[:-1], bounds[1:], strict=True) for i in range(many - few)
        ]
    order = stream(seed, split, "mixture", 0).permutation(len(jobs))
    return [jobs[i] for i in order]


def _make(pool: ProcessPoolExecutor | None, jobs: list[Job], seed: int, split: str) -> Iterator[Sample]:
    """The samples of `jobs` in their order."""
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    make = partial(_make_chunk, seed, split)
    made = pool.map(make, chunks) if pool else map(make, chunks)
    return track(chain.from_iterable(made), split, len(jobs))


def _make_chunk(seed: int, split: str, jobs: list[Job]) -> list[Sample]:
    return [make_sample(FAMILIES[family], seed, split, index) for family, index in jobs]


def _write_shards(directory: Path, samples: Iterable[Sample], texts: Counter[str]) -> int:
    """Write the samples, count their texts into `texts`, and return the bytes of their media."""
    media_bytes = 0
    with ShardWriter(directory, samples_per_shard=SAMPLES_PER_SHARD) as writer:
        for sample in samples:
            writer.add(sample.key, sample.conversation(), sample.media)
            texts.update(text for turn in sample.turns for text in (turn.text, turn.answer))
            media_bytes += sum(map(len, sample.media.values()))
    return media_bytes


def _source_hash() -> str:
    """sha256 of this package's source: a changed generator makes the set anew."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _read_manifest(out: Path) -> Json | None:
    try:
        values: Json = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(out / MANIFEST, f"is not the manifest of a demo set ({error}); remove {out}") from error
    return values


def _write_manifest(out: Path, values: Json) -> None:
    partial_file = out / (MANIFEST + ".partial")
    partial_file.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial_file.rename(out / MANIFEST)


def _finished(out: Path, parameters: Json) -> Summary | None:
    manifest = _read_manifest(out)
    if manifest is None or not manifest.get("complete") or manifest.get("parameters") != parameters:
        return None
    return Summary(**manifest["summary"] | {"reused": True})


def _claim(out: Path, unfinished: Json) -> None:
    """Mark `out` as unfinished and empty it of an earlier demo set. Raises DataError on files that are not ours."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and _read_manifest(out) is None:
        raise DataError(out, f"holds files but no {MANIFEST}; name an empty directory")
    _write_manifest(out, unfinished)
    for part in PARTS:
        if (out / part).exists():
            shutil.rmtree(out / part)

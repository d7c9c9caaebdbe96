"""A checkpoint of ours to a directory that transformers, vLLM and SGLang load.

    OUT/model-00001-of-000NN.safetensors, model.safetensors.index.json    weights, experts one by one as released
    OUT/config.json, generation config, tokenizer, processor, template    as they came with the import, sizes ours
    OUT/README.md                                                         model card: from what, by what
    OUT/glmv_export.json                                                  the same for programs: source, sha256 of all

Weights are read from any layout's chunks, slice by slice; the optimizer's state beside them is not touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import megatron_glmv
from megatron_glmv.checkpoint.hf.assets import Assets, find_assets
from megatron_glmv.checkpoint.hf.card import model_card
from megatron_glmv.checkpoint.hf.config import model_to_hf
from megatron_glmv.checkpoint.hf.importing import Summary
from megatron_glmv.checkpoint.hf.mapping import NameMapping, Shaped, name_mapping
from megatron_glmv.checkpoint.hf.memory import Watch, plan_workers, readable
from megatron_glmv.checkpoint.hf.progress import Progress
from megatron_glmv.checkpoint.hf.rows import CONFIG, OurRows, Rows, open_ours
from megatron_glmv.checkpoint.hf.safetensors import INDEX, make_header
from megatron_glmv.checkpoint.hf.work import HashedFile, Piece, Workspace, check_target
from megatron_glmv.config.errors import ConfigError

Json = dict[str, Any]
SLICE = 32 << 20
"""Bytes read at a time."""
RECORD = "glmv_export.json"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SHARD = 5 * 10**9
"""Bytes of a file, as transformers cuts them."""


@dataclass(frozen=True)
class ExportOptions:
    ckpt: Path
    out: Path
    assets: Path | None = None
    """Directory with tokenizer, processor and config to carry along; None: what the import or the run left."""
    dtype: str = ""
    """bf16, fp32, or empty: as stored. An expert bias is float32 always."""
    max_shard_size: int = SHARD
    verify: bool = False
    """Compare the checkpoint with its sha256 first."""
    workers: int | None = None
    memory_limit: int | None = None


@dataclass(frozen=True)
class Target:
    """A tensor of theirs as it will be written."""

    shaped: Shaped
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.shaped.numel * self.dtype.itemsize


def export_hf(options: ExportOptions, say: Any = lambda line: None) -> Summary:
    """Runs the export, or goes on where a killed one was. Raises ConfigError, ReadError, MismatchError, SaveError."""
    if options.dtype not in ("", *DTYPES):
        raise ConfigError("--dtype", options.dtype, f"can be {' or '.join(DTYPES)}")
    source = open_ours(options.ckpt, options.verify)
    mapping = name_mapping(source.model)
    assets = find_assets(options.assets, source.path, source.checkpoint.manifest.tokenizer_fingerprint)
    targets = [_target(source, mapping, shaped, options.dtype) for shaped in mapping.theirs.values()]
    config = _config(source, assets, targets)
    identity = _identity(source, options, assets, config)
    space = Workspace(options.out, identity)
    total = sum(target.bytes for target in targets)
    if check_target(options.out, _plan_of(options.out), space.plan):
        return Summary(options.out, len(targets), total, total)
    groups = list(grouped(targets, options.max_shard_size))
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    pieces = [_piece(source, mapping, name, group) for name, group in zip(names, groups, strict=True)]
    casts = any(target.dtype != source.dtype(mapping.sources[target.shaped.name].ours.name) for target in targets)
    buffer = (5 if casts else 2) * SLICE + (8 << 20)
    workers, expected = plan_workers(options.workers, buffer, options.memory_limit, os.cpu_count() or 1)
    space.open()
    try:
        resumed = sum(piece.bytes for piece in pieces if piece.name in space.done)
        again = f", {readable(resumed)} of it there from an earlier run" if resumed else ""
        say(
            f"{source.path}: {source.model.name}, {len(targets)} tensors, {readable(total)} to {len(pieces)} files"
            f"{again}; {workers} workers, at most {readable(expected)} of memory"
        )
        watch = Watch()
        space.run(pieces, workers, Progress("export"), watch)
        _commit(space, names, groups, total, assets, config, source, identity)
        space.finish()
    finally:
        space.close()
    return Summary(options.out, len(targets), total, resumed, workers, expected, watch.peak, watch.files)


def _target(source: OurRows, mapping: NameMapping, shaped: Shaped, dtype: str) -> Target:
    stored = source.dtype(mapping.sources[shaped.name].ours.name)
    kept = shaped.exact or not dtype
    return Target(shaped, torch.float32 if shaped.exact else stored if kept else DTYPES[dtype])


def grouped(targets: list[Target], limit: int) -> Iterator[list[Target]]:
    """Tensors of one file: in their order, at most `limit` bytes unless a single one has more. Wider elements come
    first in a file, so that every tensor starts at a multiple of its element."""
    group: list[Target] = []
    for target in targets:
        if group and sum(t.bytes for t in group) + target.bytes > limit:
            yield sorted(group, key=lambda t: -t.dtype.itemsize)
            group = []
        group.append(target)
    yield sorted(group, key=lambda t: -t.dtype.itemsize)


def _piece(source: Rows, mapping: NameMapping, name: str, targets: list[Target]) -> Piece:
    header = make_header({target.shaped.name: (target.dtype, target.shaped.shape) for target in targets})

    def write(file: HashedFile) -> None:
        buffer = np.empty(SLICE, np.uint8)  # one, so that no heap grows holes
        file.write(header)
        for target in targets:
            for rows in read_theirs(source, mapping, target.shaped.name, buffer):
                file.write(rows.to(target.dtype).view(-1).view(torch.uint8).numpy())

    return Piece(name, len(header) + sum(target.bytes for target in targets), write)


def read_theirs(source: Rows, mapping: NameMapping, name: str, buffer: Any) -> Iterator[torch.Tensor]:
    """The rows of a tensor of theirs, in order, [rows, width] at a time; each is overwritten by the next."""
    entry = mapping.sources[name]
    dtype = source.dtype(entry.ours.name)
    step = max(1, len(buffer) // (entry.width * dtype.itemsize))
    if entry.width * dtype.itemsize > len(buffer):
        buffer = np.empty(entry.width * dtype.itemsize, np.uint8)
    held, spans = 0, list(entry.spans)
    while spans:
        parts = []
        while spans and held < step:  # many short spans (a head each) make one slice
            span = spans.pop(0)
            count = min(span.rows, step - held)
            parts.append((span.start, held, count))
            held += count
            if count < span.rows:
                spans.insert(0, type(span)(span.start + count, span.name, span.offset + count, span.rows - count))
        rows = torch.frombuffer(buffer, dtype=dtype, count=held * entry.width).view(held, entry.width)
        for start, at, count in parts:
            source.read(entry.ours.name, start, rows[at : at + count])
        yield rows
        held = 0


def _config(source: OurRows, assets: Assets, targets: list[Target]) -> Json:
    """config.json: sizes of the model, everything else as it came."""
    config = model_to_hf(source.model, assets.config, assets.tokens)
    config.pop("auto_map", None)  # names code to be run; these models are in transformers
    largest = max(targets, key=lambda target: target.bytes).dtype
    stated = str(largest).removeprefix("torch.")
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = stated
    for section in (config["text_config"], config["vision_config"]):
        for key in ("dtype", "torch_dtype"):
            if section.get(key):
                section[key] = stated
    return config


def _commit(
    space: Workspace,
    names: list[str],
    groups: list[list[Target]],
    total: int,
    assets: Assets,
    config: Json,
    source: OurRows,
    identity: Json,
) -> None:
    """What makes the directory a checkpoint, config.json last."""
    files = {name: space.done[name].record for name in names}
    weight_map = {target.shaped.name: name for name, group in zip(names, groups, strict=True) for target in group}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    made = {
        **assets.files,
        INDEX: _json(index),
        "README.md": model_card(source.checkpoint, config, assets.origin).encode(),
        CONFIG: _json(config),
    }
    for name, data in made.items():
        if name != CONFIG:
            files[name] = space.write(name, data)
    record = {
        "format": "megatron_glmv.export",
        "plan": space.plan,
        "source": identity["source"],
        "files": {name: asdict(record) for name, record in sorted(files.items())},
    }
    space.write(RECORD, _json(record))
    space.write(CONFIG, made[CONFIG])


def _identity(source: OurRows, options: ExportOptions, assets: Assets, config: Json) -> Json:
    manifest = source.checkpoint.manifest
    return {
        "work": "export",
        "version": megatron_glmv.__version__,
        "source": {
            "step": manifest.step,
            "config_fingerprint": manifest.config_fingerprint,
            "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
            "files": {name: record.sha256 for name, record in sorted(manifest.files.items())},
        },
        "config": config,
        "assets": assets.digest,
        "options": [options.dtype, options.max_shard_size],
    }


def _plan_of(out: Path) -> str | None:
    try:
        whole = (out / CONFIG).is_file()
        return str(json.loads((out / RECORD).read_text("utf-8"))["plan"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _json(content: Json) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"

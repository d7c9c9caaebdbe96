"""Step 10: the samples that stay, in shards of the same names, ready to train on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_glmv.data.index import index_shard
from megatron_glmv.data.prepare.recaption import with_caption
from megatron_glmv.data.prepare.source import Sample, Shard
from megatron_glmv.data.shards import MAX_MEMBERS, ShardWriter
from megatron_glmv.data.types import Json

NAME = "write"
IDENTITY: Json = {"version": 1}


def write_shard(
    shard: Shard, samples: Sequence[Sample], captions: Mapping[str, str], out: Path, scratch: Path
) -> list[Json]:
    """Write `out`, whole or not at all, and return its index lines; no samples: no shard, and an old one goes."""
    if not samples:
        out.unlink(missing_ok=True)
        return []
    for old in scratch.glob(f"{out.stem}.*"):  # a process that was killed left it
        shutil.rmtree(old, ignore_errors=True)
    place = scratch / f"{out.stem}.{os.getpid()}"
    with ShardWriter(place, samples_per_shard=MAX_MEMBERS, prefix=out.stem) as writer:
        for sample in samples:
            conversation = sample.conversation
            if sample.key in captions:
                conversation = with_caption(conversation, captions[sample.key])
            writer.add(sample.key, conversation, {name: shard.read(sample, name) for _, name in sample.media()})
    (written,) = place.glob("*.tar")
    written = written.rename(place / out.name)
    with written.open("rb+") as file:
        os.fsync(file.fileno())
    lines = [json.loads(line) for _, line in index_shard(written)]
    written.replace(out)
    place.rmdir()
    return lines

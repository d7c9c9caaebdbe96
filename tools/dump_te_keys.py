"""Writes what Transformer Engine's layers save: key, global shape and dtype of every tensor of the tiny models.

    python tools/dump_te_keys.py > tests/golden/te_keys.json

Needs Transformer Engine installed, and no GPU: its modules are constructed on the CPU, where they ask whether a GPU is
there and are told what a Hopper card would say. Nothing is computed. tests/unit/test_te_keys.py compares the torch
layers with the file, so that a checkpoint moves between the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

MODELS = ("tiny_glm45v", "tiny_glm41v")


@contextlib.contextmanager
def pretend_hopper() -> Iterator[None]:
    """Answers what Transformer Engine asks of torch.cuda while its modules are constructed."""
    card = types.SimpleNamespace(
        name="none", major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, warp_size=32, gcnArchName=""
    )
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: torch.device("cpu"),
        "get_device_capability": lambda *_, **__: (9, 0),
        "get_device_properties": lambda *_, **__: card,
        "synchronize": lambda *_, **__: None,
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        yield


def entries(state: dict[str, Any]) -> dict[str, str]:
    """Key -> dtype and global shape of the tensors of a sharded state dict; what is no tensor is left out."""
    from megatron.core.dist_checkpointing import ShardedTensor
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    found: dict[str, str] = {}
    for value in nested_values(state):
        shards = nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]
        for shard in shards:
            if isinstance(shard, ShardedTensor):
                found[shard.key] = f"{str(shard.dtype).removeprefix('torch.')} {list(shard.global_shape)}"
    return dict(sorted(found.items()))


def keys_of(model: str, backend: str, groups: Any) -> dict[str, str]:
    """Of one model under one layer spec, in bf16, in a world of one process that has been joined."""
    from megatron_glmv.config.load import compose
    from megatron_glmv.model.build import build_chunk, sharding_metadata
    from megatron_glmv.model.config import text_transformer_config

    config = compose(["experiment=tiny_pretrain", f"model={model}", "precision=bf16", "data.path=unused"])
    text_config = text_transformer_config(config, groups.topology)
    chunk = build_chunk(config, groups, text_config, backend, None)
    return entries(chunk.sharded_state_dict(metadata=sharding_metadata(groups)))


def main() -> int:
    from megatron_glmv.config.schema import ParallelConfig
    from megatron_glmv.parallel.launch import RankContext, init_distributed
    from megatron_glmv.parallel.topology import Topology
    from megatron_glmv.platform.device import CPU

    os.environ.setdefault("NVTE_FRAMEWORK", "pytorch")
    CPU.install()
    import megatron.core
    import transformer_engine

    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all

    with tempfile.TemporaryDirectory() as folder:
        init_distributed(RankContext(0, 1, 0, Path(folder, "rendezvous").as_uri()), CPU, 60)
        groups = init_groups(Topology.resolve(ParallelConfig(), 1))
        seed_all(1)
        with pretend_hopper():
            models = {model: keys_of(model, "te", groups) for model in MODELS}
        torch.distributed.destroy_process_group()
    made = {
        "transformer_engine": transformer_engine.__version__,
        "megatron_core": megatron.core.__version__,
        "torch": torch.__version__,
        "models": models,
    }
    json.dump(made, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())

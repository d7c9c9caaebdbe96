"""A run and its rollout servers: found, checked, asked, and kept at the trained weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_glmv.checkpoint.hf.mapping import name_mapping
from megatron_glmv.config.schema import Config
from megatron_glmv.data.template import STOP_TOKENS
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.inference.media import MediaFiles
from megatron_glmv.parallel.groups import Groups
from megatron_glmv.rl.rollout.placement import server_urls
from megatron_glmv.rl.rollout.remote import RemoteEngine
from megatron_glmv.rl.rollout.server import Server, ServerError
from megatron_glmv.rl.rollout.sglang import SGLang
from megatron_glmv.rl.rollout.streaming import TrainedTensors
from megatron_glmv.rl.rollout.update import ServerWeights
from megatron_glmv.rl.rollout.vllm import VLLM

DIALECTS: dict[str, type[VLLM] | type[SGLang]] = {"vllm": VLLM, "sglang": SGLang}


def connect(
    config: Config,
    run_dir: Path,
    chunks: list[Any],
    groups: Groups,
    tokenizer: Tokenizer,
    files: MediaFiles,
    device: torch.device,
) -> tuple[RemoteEngine, ServerWeights]:
    """Collective. Raises ConfigError where no server is named, ServerError where one is not there or lacks an
    endpoint."""
    settings = config.rl.server
    servers = [Server(url, settings) for url in server_urls(settings, os.environ)]
    dialect = DIALECTS[config.rl.engine](settings.model, config.model.vision)
    names = {dialect.check(server, settings.update) for server in servers}
    if len(names) > 1:
        raise ServerError(f"the servers have several models: {', '.join(sorted(names))}; name one in rl.server.model")
    dialect = replace(dialect, model=names.pop())
    stop = STOP_TOKENS[config.data.template]
    engine = RemoteEngine(dialect, servers, tokenizer, files, stop, settings, dist.get_rank())
    tensors = TrainedTensors(chunks, name_mapping(config.model), groups, device)
    exchange = Path(settings.exchange) if settings.exchange else run_dir / "weights"
    return engine, ServerWeights(dialect, servers, tensors, settings, exchange, device)

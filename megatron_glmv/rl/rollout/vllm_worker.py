"""What is loaded into vLLM's workers, so that they take weights from us (vLLM 0.32):

    PYTHONPATH=CHECKOUT vllm serve .. --worker-extension-cls megatron_glmv.rl.rollout.vllm_worker.Extension
        --weight-transfer-config '{"backend": "glmv"}'

Registers the weight transfer backend `glmv`, which works on CPU (gloo) as on GPUs (NCCL), and a reload from disk. Both
repair what vLLM's own reload gets wrong on a CPU: there the weights of experts are packed for their kernels only when
they are loaded for the first time (`UnquantizedFusedMoEMethod._setup_kernel`), and a reload answers 200 and leaves
unpacked numbers in packed places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from megatron_glmv.rl.rollout.broadcast import empty_bytes, from_bytes, meet, open_group, send

BACKEND = "glmv"
SECONDS = 600.0
"""Longest wait for a broadcast."""


@dataclass
class JoinInfo(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    """Rank of this server's first worker."""
    world_size: int


@dataclass
class BucketInfo(WeightTransferUpdateInfo):
    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class BroadcastEngine(WeightTransferEngine[JoinInfo, BucketInfo]):
    """Receives buckets of tensors under the names of a checkpoint on disk."""

    init_info_cls = JoinInfo
    update_info_cls = BucketInfo

    def __init__(
        self, config: WeightTransferConfig, vllm_config: Any, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self.group: Any = None

    def init_transfer_engine(self, init_info: JoinInfo) -> None:
        """Joins the trainer's group, in place of an earlier one: a trainer that was started again comes anew."""
        self.group = None
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = meet(init_info.master_address, init_info.master_port, SECONDS)
        self.group = open_group(store, rank, init_info.world_size, self.device, SECONDS)

    def start_weight_update(self) -> None:
        pack_again(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BucketInfo) -> None:
        if self.group is None:
            raise RuntimeError("no trainer has joined: /init_weight_transfer_engine comes first")
        flat = empty_bytes(update_info.dtype_names, update_info.shapes, self.device)
        send(self.group, flat).wait()
        tensors = from_bytes(flat, update_info.dtype_names, update_info.shapes)
        self.model.load_weights(zip(update_info.names, tensors, strict=True))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        self.group = None


def pack_again(model: torch.nn.Module) -> None:
    """On a CPU: has the experts' kernels made as for a first load (see above)."""
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if next(module.parameters(recurse=False), torch.empty(0)).is_cpu and getattr(method, "moe_kernel", None):
            method.moe_kernel = None


class Extension:
    """Becomes a base class of the worker."""

    model_runner: Any

    def glmv_reload(self, directory: str) -> None:
        pack_again(self.model_runner.get_model())
        self.reload_weights(weights_path=directory)  # type: ignore[attr-defined]


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BroadcastEngine)

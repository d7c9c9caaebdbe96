"""Model and optimizer to and from torch_dist shards, through megatron-core's sharded state dicts.

Only tensors get there. What megatron-core would store otherwise is left out on both sides: `_extra_state` entries (byte
blobs that torch reads by unpickling; also local layers have them, empty), param_groups (their structure depends on the
layout), and common.pt, which is not written at all.

`metadata` is what sharded state dicts are made with (model/build.py, sharding_metadata): optimizer state in the shapes
of the model, which is what lets a checkpoint move between layouts.
"""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.distributed import DistributedDataParallel
from megatron.core.transformer.module import Float16Module

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.reader import OPTIMIZER, Checkpoint
from megatron_glmv.checkpoint.strategies import NoCommonFile, ShardReader, ShardWriter
from megatron_glmv.checkpoint.together import together
from megatron_glmv.model.freeze import part_of
from megatron_glmv.model.initialise import shards
from megatron_glmv.parallel.remedies import one_moment, unpadded_bucket_indices


def inner_model(chunk: Any) -> Any:
    """The model without megatron-core's wrappers: DDP prefixes its keys, Float16Module hides what loading missed."""
    while isinstance(chunk, DistributedDataParallel | Float16Module):
        chunk = chunk.module
    return chunk


def model_state(chunk: Any, metadata: dict[str, Any]) -> dict[str, Any]:
    """The sharded state dict of one model chunk, tensors only; expert biases in fp32."""
    model = inner_model(chunk)
    for module in model.modules():
        # Casting a model to bf16 casts these too; megatron-core undoes it in the first forward pass, which is too late
        # for a loaded bias: rounded to bf16 it sends tokens to other experts.
        if hasattr(module, "_maintain_float32_expert_bias"):
            module._maintain_float32_expert_bias()
    state = model.sharded_state_dict(metadata=metadata)
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def _full_state(
    chunks: list[Any], optimizer: Any, metadata: dict[str, Any], is_loading: bool
) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The sharded state dict of everything, and what was taken out of the optimizers' because it is not sharded."""
    state: dict[str, Any] = {f"model{i}": model_state(chunk, metadata) for i, chunk in enumerate(chunks)}
    if optimizer is None:
        return state, {}
    models, plain = dict(state), {}
    with unpadded_bucket_indices(optimizer):
        for i, part in _optimizers(optimizer):
            with one_moment(part) as without_second:
                whole = part.sharded_state_dict(models, is_loading=is_loading, metadata=metadata)
            state[f"optimizer{i}"] = {"param_state": without_second(whole.pop("param_state"))}
            plain[i] = whole
    return state, plain


def _optimizers(optimizer: Any) -> list[tuple[int, Any]]:
    """The distributed optimizers of this rank that have parameters; how many there are depends on the layout, and a
    pipeline stage whose parts are all frozen has none."""
    parts = enumerate(optimizer.chained_optimizers)
    return [(i, part) for i, part in parts if not getattr(part, "is_stub_optimizer", False) and part.buffers]


def has_moments(optimizer: Any) -> bool:
    """Whether this rank's optimizer has made an update (or was loaded); before that there is nothing to save."""
    return any(len(part.optimizer.state) > 0 for _, part in _optimizers(optimizer))


def save_shards(folder: Path, step: int, chunks: list[Any], optimizer: Any, metadata: dict[str, Any]) -> int:
    """Writes this rank's shards into `folder`, and on rank 0 their index. Collective. Returns the optimizer's step.

    One file per rank that is the first of its replicas. `optimizer` None: weights only.
    """
    if any(getattr(chunk, "use_forward_hook", False) and chunk.remove_forward_pre_hook_handles for chunk in chunks):
        raise RuntimeError("overlapped parameter gathering is on: other ranks' weights are one step old until gathered")
    state, plain = _full_state(chunks, optimizer, metadata, is_loading=False)
    if any("grad_scaler" in rest for rest in plain.values()):
        raise NotImplementedError("fp16 loss scaling has state that the checkpoint format has no place for")
    tensors, _ = save_preprocess(state)
    filesystem_async._results_queue = queue.Queue()  # else megatron-core starts a manager process per rank (5-12 s)
    ShardWriter(step).save(tensors, folder)
    groups = [group for rest in plain.values() for group in rest["optimizer"]["param_groups"]]
    return max((int(group.get("step", 0)) for group in groups), default=0)


def load_shards(
    checkpoint: Checkpoint,
    chunks: list[Any],
    optimizer: Any,
    metadata: dict[str, Any],
    thawed: tuple[str, ...] = (),
    spare: str = "",
) -> None:
    """Loads weights, and with `optimizer` its state, whatever layout they were saved on. Collective.

    `thawed`: parts that were frozen when the checkpoint was written; where it has no optimizer state of them, they
    start with the loaded weights and no moments. `spare`: tensors that begin so may be left over.
    Raises on every rank: MismatchError (nothing was changed) if tensors, shapes or the fp32 dtype of an expert bias do
    not match, ReadError (weights may be half loaded) if bytes are not sound.
    """
    state, plain = _full_state(chunks, optimizer, metadata, is_loading=True)
    fresh = _take_out_fresh(checkpoint, state, optimizer, thawed)
    wanted = list(shards(state))
    together(lambda: _check(checkpoint, wanted))
    _check_complete(checkpoint, wanted, optimizer is not None, spare)
    loaded: dict[str, Any] = {}

    def read() -> None:
        loaded.update(
            dist_checkpointing.load(
                state,
                str(checkpoint.path),
                sharded_strategy=ShardReader(checkpoint),
                common_strategy=NoCommonFile(),
                validate_access_integrity=False,  # _check_complete looks at what this looks at, on all ranks
            )
        )

    together(read)
    for i, chunk in enumerate(chunks):
        missing, unexpected = inner_model(chunk).load_state_dict(loaded[f"model{i}"], strict=False)
        missing = [name for name in missing if not name.endswith("_extra_state")]
        if missing or unexpected:
            raise AssertionError(f"sharded_state_dict and state_dict disagree on {[*missing, *unexpected]}")
    if optimizer is None:
        return
    for i, part in _optimizers(optimizer):
        for group in plain[i]["optimizer"]["param_groups"]:
            group["step"] = checkpoint.optimizer_step
        param_state = loaded[f"optimizer{i}"]["param_state"]
        for number, (parameter, names) in fresh.get(i, {}).items():
            weight = parameter.detach().float()
            param_state[number] = {n: weight if n == "param" else torch.zeros_like(weight) for n in names}
        part.load_state_dict({**plain[i], **loaded[f"optimizer{i}"]})
    _gather_converted(checkpoint, wanted, chunks)


def _take_out_fresh(
    checkpoint: Checkpoint, state: dict[str, Any], optimizer: Any, thawed: tuple[str, ...]
) -> dict[int, dict[int, tuple[torch.nn.Parameter, list[str]]]]:
    """Takes out of a sharded state dict what the checkpoint cannot have: optimizer -> number of the parameter in its
    state -> the parameter and the names of its state."""
    taken: dict[int, dict[int, tuple[torch.nn.Parameter, list[str]]]] = {}
    for i, part in _optimizers(optimizer) if optimizer is not None and thawed else []:
        param_state = state[f"optimizer{i}"]["param_state"]
        order = [parameter for buffer in part.buffers for parameter in buffer.param_index_map]
        for number, parameter in enumerate(order):
            key = next(shards({"param": param_state[number]["param"]})).key
            if key not in checkpoint.tensors and part_of(key.removeprefix(f"{OPTIMIZER}param.")) in thawed:
                taken.setdefault(i, {})[number] = (parameter, list(param_state.pop(number)))
    return taken


def _check(checkpoint: Checkpoint, wanted: list[ShardedTensor]) -> None:
    wrong = []
    for shard in wanted:
        record = checkpoint.tensors.get(shard.key)
        if record is None:
            wrong.append(f"{shard.key} is not in the checkpoint")
        elif record.shape != tuple(shard.global_shape):
            wrong.append(f"{shard.key} has shape {record.shape} in the checkpoint, {tuple(shard.global_shape)} here")
        elif shard.key.endswith("expert_bias") and record.dtype != torch.float32:
            wrong.append(f"{shard.key} is {record.dtype} in the checkpoint; an expert bias is only exact in float32")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise MismatchError(f"{checkpoint.path}: {'; '.join(wrong[:8])}{more}")


def _check_complete(checkpoint: Checkpoint, wanted: list[ShardedTensor], optimizer: bool, spare: str) -> None:
    """Nothing else of the checkpoint may be left over: counts the elements that the ranks together ask for."""
    asks = torch.tensor(bool(spare) and any(s.key.startswith(spare) for s in wanted), dtype=torch.int64)
    asks = asks.to(wanted[0].data.device if wanted else "cpu")
    dist.all_reduce(asks, op=dist.ReduceOp.MAX)
    spare = "" if asks.item() else spare
    totals = [0, 0]
    for shard in wanted:
        if is_main_replica(shard.replica_id):
            totals[shard.key.startswith(OPTIMIZER)] += shard.data.numel()
    asked = torch.tensor(totals, dtype=torch.int64, device=wanted[0].data.device if wanted else None)
    dist.all_reduce(asked)
    kinds = (False, True) if optimizer else (False,)
    for is_state, count in zip(kinds, asked.tolist(), strict=False):
        stored = sum(
            record.numel
            for name, record in checkpoint.tensors.items()
            if name.startswith(OPTIMIZER) == is_state and not (spare and name.startswith(spare))
        )
        if stored != count:
            what = "optimizer state" if is_state else "weights"
            raise MismatchError(f"{checkpoint.path} has {stored} elements of {what}, the model here has {count}")


def _gather_converted(checkpoint: Checkpoint, wanted: list[ShardedTensor], chunks: list[Any]) -> None:
    """fp32 weights loaded from a bf16 checkpoint: the optimizer's fp32 copy is finer, and each data-parallel rank has
    put its own part of it into the weights. The ranks exchange these parts, so that their weights are equal."""
    finer = any(
        shard.data.dtype == torch.float32 and checkpoint.tensors[shard.key].dtype != torch.float32 for shard in wanted
    )
    flag = torch.tensor([int(finer)], device=wanted[0].data.device if wanted else None)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if flag.item():
        for chunk in chunks:
            chunk.start_param_sync(force_sync=True)

"""The process groups of a run, made once and handed on. The only file that names megatron-core's `parallel_state`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_glmv.parallel.topology import Topology


@dataclass(frozen=True)
class Groups:
    """Groups of this rank.

    `mcore` is what megatron-core's modules take; `solo` is a collection in which every group holds this rank alone, for
    modules that are not sharded (the vision encoder), `tensor_only` one in which all but the tensor-parallel group do;
    `topology` is the rank grid they were made from.
    """

    mcore: Any
    solo: Any
    tensor_only: Any
    topology: Topology

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def tp(self) -> Any:
        return self.mcore.tp

    @property
    def cp(self) -> Any:
        return self.mcore.cp

    @property
    def tp_cp(self) -> Any:
        """Tensor parallel x context parallel, tensor ranks fastest: the ranks that hold parts of one pack."""
        return self.mcore.tp_cp

    @property
    def pp(self) -> Any:
        return self.mcore.pp

    @property
    def dp(self) -> Any:
        """Data parallel alone: the ranks with different packs."""
        return self.mcore.dp

    @property
    def dp_cp(self) -> Any:
        """Data parallel x context parallel: the ranks over which losses and gradients are summed."""
        return self.mcore.dp_cp

    @property
    def model(self) -> Any:
        """The ranks of one model replica: tensor x context x pipeline at one data-parallel index."""
        return self._replica

    @property
    def dp_rank(self) -> int:
        return int(self.mcore.dp.rank())

    @property
    def first_stage(self) -> bool:
        return int(self.pp.rank()) == 0

    @property
    def last_stage(self) -> bool:
        return int(self.pp.rank()) == int(self.pp.size()) - 1

    _replica: Any = None


def init_groups(topology: Topology) -> Groups:
    """Makes all groups on every rank. Collective. `torch.distributed` must be initialised with `topology.world`
    ranks."""
    if dist.get_world_size() != topology.world:
        raise RuntimeError(f"the layout needs {topology.world} ranks, the launcher started {dist.get_world_size()}")
    parallel_state.initialize_model_parallel(
        topology.tensor,
        topology.pipeline,
        topology.virtual_pipeline if topology.virtual_pipeline > 1 else None,
        context_parallel_size=topology.context,
        expert_model_parallel_size=topology.expert,
        expert_tensor_parallel_size=topology.expert_tensor,
        # Our checkpoints and gathers run on the main groups: with gloo they are gloo already.
        create_gloo_process_groups=False,
    )
    mcore = ProcessGroupCollection.use_mpu_process_groups()
    # megatron-core's model-parallel group is tensor x pipeline and leaves context parallel ranks out, which share data
    # too.
    replicas: dict[int, list[int]] = {}
    for rank in range(topology.world):
        replicas.setdefault(topology.coordinates(rank).data, []).append(rank)
    replica = None
    for ranks in replicas.values():  # every rank takes part in the making of every group
        group = dist.new_group(ranks)
        replica = group if dist.get_rank() in ranks else replica
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return Groups(
        mcore=mcore,
        solo=_collection(alone, alone),
        tensor_only=_collection(alone, mcore.tp),
        topology=topology,
        _replica=replica,
    )


def _collection(alone: Any, tensor: Any) -> Any:
    names = ("pp", "mp", "embd", "pos_embd", "cp", "tp_cp", "ep", "expt_tp", "tp_ep", "tp_ep_pp", "tp_dp_cp")
    data = ("dp", "dp_cp", "expt_dp", "intra_dp_cp", "intra_expt_dp")
    return ProcessGroupCollection(tp=tensor, **dict.fromkeys((*names, *data), alone))


def destroy_groups() -> None:
    """Takes everything down, so that one process can lay another grid (tests, tools)."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def device_sum(values: list[float], group: Any, device: torch.device) -> list[float]:
    """Sums a few numbers over `group` in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total, group=group)
    return [float(value) for value in total.tolist()]

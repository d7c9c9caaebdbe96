"""The sizes of the rank grid that a `ParallelConfig` means, with what it leaves open filled in. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError
from .schema import ParallelConfig


@dataclass(frozen=True)
class Sizes:
    """Ranks along each axis; the world is tensor x context x data x pipeline."""

    tensor: int
    context: int
    data: int
    pipeline: int
    expert_tensor: int
    expert: int

    @property
    def world(self) -> int:
        return self.tensor * self.context * self.data * self.pipeline

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor * self.context * self.data


def expert_tensor_of(parallel: ParallelConfig) -> int:
    """1 where experts are spread (a tensor rank then holds whole experts), else equal to tensor."""
    if parallel.expert_tensor is not None:
        return parallel.expert_tensor
    return 1 if parallel.expert > 1 else parallel.tensor


def sequence_of(parallel: ParallelConfig) -> bool:
    """Sequence parallelism: on where tensor > 1 unless said otherwise."""
    return parallel.tensor > 1 if parallel.sequence is None else parallel.sequence


def resolve_sizes(parallel: ParallelConfig, world: int | None) -> Sizes:
    """Fills in `data` and `expert_tensor`. `world`: ranks that a launcher started; None when we start them.

    Raises ConfigError when the world is no multiple of tensor x pipeline x context, contradicts `data`, or when
    expert x expert_tensor does not divide the ranks of a stage.
    """
    replica = parallel.tensor * parallel.pipeline * parallel.context
    product = "tensor x pipeline x context"
    if world is None:
        data = parallel.data or 1
    elif world % replica:
        below, above = world // replica * replica, (world // replica + 1) * replica
        near = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            "parallel", f"{product} = {replica}", f"does not divide the {world} ranks started", f"start {near} ranks"
        )
    else:
        data = world // replica
        if parallel.data not in (None, data):
            raise ConfigError(
                "parallel.data",
                parallel.data,
                f"{product} = {replica} on the {world} ranks started leaves {data}",
                f"parallel.data={data} or parallel.data=null, or start {replica * (parallel.data or 1)} ranks",
                (("parallel.data", data), ("parallel.data", None)),
            )
    sizes = Sizes(
        parallel.tensor, parallel.context, data, parallel.pipeline, expert_tensor_of(parallel), parallel.expert
    )
    if sizes.stage % (sizes.expert * sizes.expert_tensor):
        raise ConfigError(
            "parallel.expert",
            sizes.expert,
            f"expert x expert_tensor = {sizes.expert * sizes.expert_tensor} has to divide the {sizes.stage} ranks of a "
            "pipeline stage (tensor x context x data)",
        )
    return sizes

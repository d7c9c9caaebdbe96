"""The rank grid: who sits where, and which ranks form each group. Pure; no torch, no process.

Ranks are laid in megatron-core's default order, the first axis fastest: tensor, context, data, pipeline for dense
layers; expert_tensor, expert, expert_data, pipeline for experts. Both cover the same ranks of each pipeline stage.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

from megatron_glmv.config.layout import resolve_sizes
from megatron_glmv.config.schema import ParallelConfig

DENSE_AXES = ("tensor", "context", "data", "pipeline")
EXPERT_AXES = ("expert_tensor", "expert", "expert_data", "pipeline")


@dataclass(frozen=True)
class Coordinates:
    """Where a rank sits on each axis, from 0."""

    tensor: int
    context: int
    data: int
    pipeline: int
    expert_tensor: int
    expert: int
    expert_data: int


@dataclass(frozen=True)
class Topology:
    """Sizes along each axis, all resolved."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise ValueError(f"every size of a layout is at least 1: {self}")
        if self.stage_ranks % (self.expert * self.expert_tensor):
            raise ValueError(f"expert x expert_tensor does not divide the {self.stage_ranks} ranks of a stage: {self}")

    @staticmethod
    def resolve(parallel: ParallelConfig, world: int | None) -> Topology:
        """The grid of a config. `world`: ranks that a launcher started; None when we start them. Raises ConfigError."""
        sizes = resolve_sizes(parallel, world)
        return Topology(
            tensor=sizes.tensor,
            pipeline=sizes.pipeline,
            virtual_pipeline=parallel.virtual_pipeline,
            context=sizes.context,
            expert=sizes.expert,
            expert_tensor=sizes.expert_tensor,
            data=sizes.data,
        )

    @property
    def world(self) -> int:
        return self.stage_ranks * self.pipeline

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor * self.context * self.data

    @property
    def expert_data(self) -> int:
        """Copies of each expert: ranks over which its gradient is summed."""
        return self.stage_ranks // (self.expert * self.expert_tensor)

    def coordinates(self, rank: int) -> Coordinates:
        if not 0 <= rank < self.world:
            raise IndexError(f"rank {rank} of a world of {self.world}")
        dense, expert = self._unravel(rank, DENSE_AXES), self._unravel(rank, EXPERT_AXES)
        return Coordinates(**{**dense, **expert})

    def groups(self, *axes: str) -> list[list[int]]:
        """Every group of ranks that differ only along `axes`, e.g. groups("tensor", "context").

        Axes are all dense (tensor, context, data, pipeline) or all of experts (expert_tensor, expert, expert_data,
        pipeline). Ranks ascend in each group, and groups by their first rank. Raises ValueError for a mixture.
        """
        grid = next((names for names in (DENSE_AXES, EXPERT_AXES) if set(axes) <= set(names)), None)
        if grid is None:
            raise ValueError(f"{axes} are not axes of one grid: {DENSE_AXES} or {EXPERT_AXES}")
        fixed = [axis for axis in grid if axis not in axes]
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world):
            place = self._unravel(rank, grid)
            found.setdefault(tuple(place[axis] for axis in fixed), []).append(rank)
        return sorted(found.values())

    def group_of(self, rank: int, *axes: str) -> list[int]:
        """The group along `axes` that holds `rank`."""
        return next(ranks for ranks in self.groups(*axes) if rank in ranks)

    def describe(self) -> str:
        """A line for people: "4 ranks: tensor 2, pipeline 2, expert 2"."""
        sizes = {name: size for name, size in asdict(self).items() if size > 1}
        ranks = f"{self.world} rank{'s' if self.world > 1 else ''}"
        return ranks + (": " + ", ".join(f"{name} {size}" for name, size in sizes.items()) if sizes else "")

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def _unravel(self, rank: int, axes: tuple[str, ...]) -> dict[str, int]:
        sizes = [int(getattr(self, axis)) for axis in axes]
        strides = [prod(sizes[:i]) for i in range(len(sizes))]
        pairs = zip(axes, strides, sizes, strict=True)
        return {axis: rank // stride % size for axis, stride, size in pairs}

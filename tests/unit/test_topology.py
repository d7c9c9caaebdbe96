"""The rank grid: every rank has one place, every kind of group covers the world once, in megatron-core's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from megatron.core.parallel_state import RankGenerator

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import ParallelConfig
from megatron_glmv.parallel.topology import DENSE_AXES, EXPERT_AXES, Topology


def grids() -> Iterator[Topology]:
    for tensor, pipeline, context, data in itertools.product((1, 2, 3), (1, 2, 4), (1, 2), (1, 2, 3)):
        stage = tensor * context * data
        for expert, expert_tensor in itertools.product((1, 2, 3, 6), (1, 2, 3)):
            if stage % (expert * expert_tensor) == 0:
                yield Topology(
                    tensor=tensor,
                    pipeline=pipeline,
                    context=context,
                    data=data,
                    expert=expert,
                    expert_tensor=expert_tensor,
                )


GRIDS = list(grids())


def test_there_are_many_grids() -> None:
    assert len(GRIDS) > 200


def test_every_kind_of_group_covers_the_world_once() -> None:
    for topology in GRIDS:
        for axes in (DENSE_AXES, EXPERT_AXES):
            for size in range(1, len(axes) + 1):
                for chosen in itertools.combinations(axes, size):
                    groups = topology.groups(*chosen)
                    assert sorted(rank for group in groups for rank in group) == list(range(topology.world))


def test_a_group_holds_the_ranks_that_differ_along_its_axes_only() -> None:
    for topology in GRIDS[::7]:
        for rank in range(topology.world):
            here = topology.coordinates(rank)
            for axis in ("tensor", "data", "expert", "expert_data", "pipeline"):
                fixed = [name for name in (DENSE_AXES if axis in DENSE_AXES else EXPERT_AXES) if name != axis]
                expected = [
                    other
                    for other in range(topology.world)
                    if all(getattr(topology.coordinates(other), name) == getattr(here, name) for name in fixed)
                ]
                assert topology.group_of(rank, axis) == expected
                assert expected.index(rank) == getattr(here, axis)


def test_the_order_is_megatron_cores() -> None:
    names = {"tensor": "tp", "context": "cp", "data": "dp", "pipeline": "pp"}
    experts = {"expert_tensor": "tp", "expert": "ep", "expert_data": "dp", "pipeline": "pp"}
    for t in GRIDS:
        order = "tp-cp-ep-dp-pp"
        dense = RankGenerator(tp=t.tensor, ep=1, dp=t.data, pp=t.pipeline, cp=t.context, order=order)
        expert = RankGenerator(tp=t.expert_tensor, ep=t.expert, dp=t.expert_data, pp=t.pipeline, cp=1, order=order)
        for generator, translation in ((dense, names), (expert, experts)):
            for size in (1, 2, 3):
                for axes in itertools.combinations(translation, size):
                    theirs = generator.get_ranks("-".join(translation[axis] for axis in axes))
                    assert t.groups(*axes) == sorted(theirs), (t, axes)


def test_experts_are_spread_over_tensor_ranks_by_default() -> None:
    topology = Topology.resolve(ParallelConfig(tensor=2, pipeline=2, expert=2), None)
    assert (topology.world, topology.expert_tensor, topology.data, topology.expert_data) == (4, 1, 1, 1)
    assert topology.groups("expert") == topology.groups("tensor") == [[0, 1], [2, 3]]
    assert Topology.resolve(ParallelConfig(tensor=2), None).expert_tensor == 2
    assert topology.describe() == "4 ranks: tensor 2, pipeline 2, expert 2"
    assert Topology(**topology.to_json()) == topology


def test_data_parallelism_is_what_the_launcher_leaves() -> None:
    assert Topology.resolve(ParallelConfig(tensor=2, pipeline=2), 16).data == 4
    assert Topology.resolve(ParallelConfig(), None).world == 1
    assert Topology.resolve(ParallelConfig(data=3), None).world == 3
    with pytest.raises(ConfigError, match="does not divide the 6 ranks"):
        Topology.resolve(ParallelConfig(tensor=4), 6)
    with pytest.raises(ConfigError, match=r"parallel\.data=2"):
        Topology.resolve(ParallelConfig(tensor=2, data=1), 4)
    with pytest.raises(ConfigError, match="expert x expert_tensor"):
        Topology.resolve(ParallelConfig(expert=2), None)


def test_a_grid_that_cannot_be_laid_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        Topology(data=3, expert=2)
    with pytest.raises(ValueError, match="at least 1"):
        Topology(tensor=0)
    with pytest.raises(ValueError, match="not axes of one grid"):
        Topology(tensor=2).groups("tensor", "expert")
    with pytest.raises(IndexError):
        Topology(tensor=2).coordinates(2)

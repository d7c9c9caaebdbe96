"""One table of layouts: loss and every single gradient against one process, and what each rank held and sent.

Derivation. A step's loss is a sum over tokens divided by one global weight, and each token, image and expert slot is
computed on exactly one rank, so the sum of the ranks' gradients is the single process's gradient of every tensor. In
fp32 they differ by the order of summation: the bounds are 1e-5 (loss, relative) and 1e-4 (the norm of each tensor's
difference, relative to the tensor's). A wrong factor or a missing reduction shows as 1e-2 or more. k's part of the QKV
bias has gradient 0 up to rounding for the share that all keys have in common, and is compared together with q and v,
which it is stored with.

That a layout agrees would also be true of one that quietly did nothing. So each rank's shards must be the fraction of
every tensor that the layout says (experts / (EP x ETP), linear layers / TP, decoder layers of its pipeline stage only,
all else whole), and each kind of collective must occur exactly where the axes need it:

    all_reduce       gradients over data x context; over TP what its ranks have parts of, and the loss; with a
                     prediction layer (MTP) the embedding's gradient over the two pipeline stages that hold it
    all_gather, reduce_scatter   TP (sequence parallel), CP (keys and values, and back), EP (counts of tokens)
    all_to_all       experts over EP; features from the rank that encoded them to the one that fuses them
    send, recv       PP

bf16 rounds each product to 8 bits, 2^-8 = 4e-3, so its layouts are held to the fp32 single process within 1e-2 (loss)
and 0.15 (gradients; measured 0.10 in one process as in four: it is the format's, not the layout's).

The packs of tests/helpers/tiny.py have an image and a video that begin at token 3 of segments of 32, which CP 2 cuts
at 8 and CP 4 at 4; one of four has no image at all, so that DP 4 has a replica without any, and every layout has
micro-batches without. Not covered: Transformer Engine, which needs a GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.pipeline_split import chunk_layers
from megatron_glmv.config.schema import Config, MTPConfig
from megatron_glmv.model.prediction import PREDICTION
from megatron_glmv.parallel.topology import Topology

MODELS = {"4.5V": tiny.MODEL, "4.1V": tiny.DENSE, "MTP": replace(tiny.MODEL, mtp=MTPConfig(layers=1))}
REDUCE, GATHER, ALL_TO_ALL, P2P = "all_reduce", "gather + scatter", "all_to_all", "send + recv"
KINDS = {
    **dict.fromkeys(("allreduce", "allreduce_coalesced"), REDUCE),
    **dict.fromkeys(("allgather", "_allgather_base", "all_gather_single", "all_gather_single_coalesced"), GATHER),
    **dict.fromkeys(("reduce_scatter", "_reduce_scatter_base", "reduce_scatter_single"), GATHER),
    **dict.fromkeys(("alltoall", "alltoall_base", "all_to_all_single"), ALL_TO_ALL),
    **dict.fromkeys(("send", "recv"), P2P),
}
"""Methods of torch's process groups, which every collective goes through, under their names of torch 2.6 to 2.13."""


@dataclass(frozen=True)
class Layout:
    name: str
    model: str
    parallel: dict[str, Any]
    precision: str = "fp32"
    fast: bool = False

    def __str__(self) -> str:
        return f"{self.model} {self.name}"


def row(name: str, model: str = "4.5V", precision: str = "fp32", fast: bool = False, **parallel: Any) -> Layout:
    return Layout(name, model, parallel, precision, fast)


OVERLAPPED = {"overlap_grad_reduce": True}
LAYOUTS = [
    row("TP2 + SP", fast=True, tensor=2),
    row("TP2 + SP, encoder replicated", tensor=2, encoder_data=False),
    row("TP2 + SP, encoder sharded", tensor=2, encoder_tensor=True),
    row("PP2", fast=True, pipeline=2),
    row("PP2, uneven 1 + 3 layers", pipeline=2, pipeline_layers=(1, 3)),
    row("PP2, balanced by cost", pipeline=2, pipeline_split="balanced"),
    row("PP4", pipeline=4),
    row("PP2 x VPP2", fast=True, pipeline=2, virtual_pipeline=2),
    row("DP2", fast=True, data=2),
    row("DP2, overlapped", data=2, **OVERLAPPED),
    row("DP4, a replica without images", data=4),
    row("EP2 (on DP2)", fast=True, data=2, expert=2),
    row("EP4 (on DP4)", data=4, expert=4),
    row("CP2", fast=True, context=2),
    row("CP2, encoder replicated", context=2, encoder_data=False),
    row("CP2, overlapped", context=2, **OVERLAPPED),
    row("CP4", context=4),
    row("TP2 x EP2", tensor=2, expert=2),
    row("TP2 x DP2", tensor=2, data=2),
    row("TP2 x EP2 x ETP2 (on DP2)", tensor=2, data=2, expert=2, expert_tensor=2),
    row("TP2 x CP2 x EP2 x ETP2", tensor=2, context=2, expert=2, expert_tensor=2),
    row("TP2 x PP2 x EP2", fast=True, tensor=2, pipeline=2, expert=2),
    row("TP2 x CP2", tensor=2, context=2),
    row("TP2 x CP2, encoder replicated", tensor=2, context=2, encoder_data=False),
    row("TP2 x CP2, encoder sharded", tensor=2, context=2, encoder_tensor=True),
    row("TP2 x CP2, encoder sharded, replicated", tensor=2, context=2, encoder_tensor=True, encoder_data=False),
    row("TP2 x PP2 x EP2, encoder sharded", tensor=2, pipeline=2, expert=2, encoder_tensor=True),
    row("TP2 x CP2 x EP4", tensor=2, context=2, expert=4),
    row("CP2 x EP2", context=2, expert=2),
    row("CP2 x DP2", context=2, data=2),
    row("CP2 x PP2", context=2, pipeline=2),
    row("CP2 x PP2 x VPP2", context=2, pipeline=2, virtual_pipeline=2),
    row("PP2 x DP2 x EP2, overlapped", pipeline=2, data=2, expert=2, **OVERLAPPED),
    row("CP2", "4.1V", fast=True, context=2),
    row("TP2 + SP", "4.1V", tensor=2),
    row("TP2 without SP", "4.1V", tensor=2, sequence=False),
    row("TP2 without SP, encoder replicated", "4.1V", tensor=2, sequence=False, encoder_data=False),
    row("TP2 without SP, encoder sharded", "4.1V", tensor=2, sequence=False, encoder_tensor=True),
    row("PP2 x VPP2", "4.1V", pipeline=2, virtual_pipeline=2),
    row("TP2 x CP2", "4.1V", tensor=2, context=2),
    row("TP2 x CP2 without SP", "4.1V", tensor=2, context=2, sequence=False),
    row("TP2 x CP2 without SP, replicated", "4.1V", tensor=2, context=2, sequence=False, encoder_data=False),
    row("TP2 + SP", "MTP", tensor=2),
    row("PP2", "MTP", pipeline=2),
    row("PP2 x VPP2", "MTP", pipeline=2, virtual_pipeline=2),
    row("PP2 x DP2, overlapped, balanced", "MTP", pipeline=2, data=2, pipeline_split="balanced", **OVERLAPPED),
    row("CP2", "MTP", context=2),
    row("CP4", "MTP", context=4),
    row("EP2 (on DP2)", "MTP", data=2, expert=2),
    row("TP2 x PP2 x EP2", "MTP", tensor=2, pipeline=2, expert=2),
    row("TP2 x CP2 x EP4", "MTP", tensor=2, context=2, expert=4),
    row("CP2 x PP2", "MTP", fast=True, context=2, pipeline=2),
    row("one process, bf16", precision="bf16"),
    row("TP2 x PP2 x EP2, bf16", precision="bf16", tensor=2, pipeline=2, expert=2),
    row("TP2 x CP2, bf16", precision="bf16", tensor=2, context=2),
]
LOSS_BOUND = {"fp32": 1e-5, "bf16": 1e-2}
GRADIENT_BOUND = {"fp32": 1e-4, "bf16": 0.15}


@dataclass(frozen=True)
class Shard:
    name: str
    shape: tuple[int, ...]
    where: tuple[slice, ...]
    gradient: Any


@dataclass(frozen=True)
class RankFound:
    loss: float
    shards: list[Shard]
    calls: dict[str, int]


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Calls by kind on groups of more than one rank."""
    import torch.distributed as dist

    made: Counter[str] = Counter()

    def counting(kind: str, original: Any) -> Any:
        def call(group: Any, *args: Any, **kwargs: Any) -> Any:
            if group.size() > 1:
                made[kind] += 1
            return original(group, *args, **kwargs)

        return call

    originals = {name: getattr(dist.ProcessGroup, name) for name in KINDS if hasattr(dist.ProcessGroup, name)}
    for name, original in originals.items():
        setattr(dist.ProcessGroup, name, counting(KINDS[name], original))
    try:
        yield made
    finally:
        for name, original in originals.items():
            setattr(dist.ProcessGroup, name, original)


def first_step(config: Config) -> RankFound:
    """The first step's loss (with a prediction layer's part), gradients of this rank's shards, all-reduced, and its
    collectives by kind."""
    import torch
    import torch.distributed as dist
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from megatron_glmv.model.build import build_model, sharding_metadata
    from megatron_glmv.model.initialise import shards
    from megatron_glmv.model.router import samples_in, set_balance_scale
    from megatron_glmv.parallel.groups import device_sum, init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.train.feed import Feed
    from megatron_glmv.train.step import Trainer, loss_and_report

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    device = torch.device("cpu")
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=False,  # all-reduced: each rank has the whole gradient of what it holds
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
    )
    built = build_model(config, groups, backend="torch", device=device)
    chunks = [DistributedDataParallel(c.config, ddp, c, disable_bucketing=i > 0) for i, c in enumerate(built)]
    trainer = Trainer(chunks, SimpleNamespace(scale_loss=lambda x: x), groups, device, config.data.pack_tokens)
    packs, size = config.train.global_batch, groups.topology.data
    owner = dist.get_process_group_ranks(groups.model)[0] == dist.get_rank()
    feed = Feed(tiny.Packs(packs, groups.dp_rank, size) if owner else None, groups, device, packs // size)
    batches = feed.next_step()
    counts = [
        sum(float(b.loss_weights.sum()) for b in batches),
        float(sum(samples_in(b.padding, b.cu_seqlens) for b in batches)),
    ]
    trainer._weight, samples = device_sum(counts, groups.dp, device)
    set_balance_scale(chunks, trainer._weight / samples)
    for chunk in chunks:
        chunk.zero_grad_buffer()
    with counted_calls() as calls:
        collected = trainer.forward_backward(batches, loss_and_report, forward_only=False)
    counted = groups.last_stage and groups.tp.rank() == 0
    found = []
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data = parameter.main_grad
        module = chunk.module
        while not hasattr(module, "language"):
            module = module.module
        for shard in shards(module.sharded_state_dict(metadata=sharding_metadata(groups))):
            if shard.data is None or shard.key.endswith(("expert_bias", "_extra_state")):
                continue
            where = tuple(s if isinstance(s, slice) else slice(s, s + 1) for s in shard.global_slice())
            data = shard.data.detach().float().numpy().reshape([s.stop - s.start for s in where])
            found.append(Shard(shard.key, tuple(shard.global_shape), where, data.copy()))
    further = trainer.further.factor * float(trainer.further.sums[0]) if trainer.further else 0.0
    loss = (float(sum(collected)) + further) / trainer._weight if counted else 0.0
    return RankFound(loss, found, dict(calls))


@dataclass(frozen=True)
class Found:
    loss: float
    gradients: dict[str, Any]
    ranks: list[RankFound]


def run(model: str, precision: str, parallel: dict[str, Any]) -> Found:
    """Loss and the whole gradient of every tensor by its global name. Asserts that ranks with one shard agree on it."""
    config = tiny.config(MODELS[model], precision, **parallel)
    ranks: list[RankFound] = run_ranks(first_step, Topology.resolve(config.parallel, None).world, config)
    whole: dict[str, Any] = {}
    seen: dict[tuple[str, str], Any] = {}
    for rank in ranks:
        for shard in rank.shards:
            whole.setdefault(shard.name, np.full(shard.shape, np.nan, dtype=np.float32))[shard.where] = shard.gradient
            other = seen.setdefault((shard.name, str(shard.where)), shard.gradient)
            assert np.allclose(other, shard.gradient, rtol=1e-4, atol=1e-6), shard.name
    return Found(sum(rank.loss for rank in ranks), whole, ranks)


@lru_cache
def reference(model: str) -> Found:
    found = run(model, "fp32", {})
    assert len(found.gradients) > 40 and not found.ranks[0].calls
    return found


LINEAR = re.compile(r".*(linear_qkv|linear_proj|linear_fc1|linear_fc2|eh_proj)\.(weight|bias)$")
LAYER = re.compile(r"^language\.decoder\.layers\.(\d+)\.")


def parts(name: str, topology: Topology, encoder_tensor: bool) -> int:
    """Into how many parts a tensor is cut."""
    if name.startswith("vision.") and not encoder_tensor:
        return 1
    if ".mlp.experts." in name:
        return topology.expert * topology.expert_tensor
    if LINEAR.match(name) or name.endswith(("word_embeddings.weight", "output_layer.weight")):
        return topology.tensor
    return 1


def check_shares(layout: Layout, found: Found, topology: Topology) -> None:
    """Every rank holds what the layout says, and no more."""
    split = chunk_layers(tiny.config(MODELS[layout.model], **layout.parallel))
    for number, rank in enumerate(found.ranks):
        held: Counter[str] = Counter()
        for shard in rank.shards:
            held[shard.name] += shard.gradient.size
        for name, elements in held.items():
            cut = parts(name, topology, layout.parallel.get("encoder_tensor", False))
            assert elements * cut == found.gradients[name].size, (name, elements)
        stage = topology.coordinates(number).pipeline
        layers = {int(match[1]) for name in held if (match := LAYER.match(name))}
        every = split[stage] if split else tiny.TEXT.layers // topology.pipeline
        assert len(layers) == every, (number, layers)
        assert any(name.startswith("vision.") for name in held) == (stage == 0)
        last = stage == topology.pipeline - 1
        predicts = last and MODELS[layout.model].mtp.layers > 0
        assert any("output_layer" in name for name in held) == last
        assert any(name.startswith(PREDICTION) for name in held) == predicts
        assert any("word_embeddings" in name for name in held) == (stage == 0 or predicts)


def check_travel(layout: Layout, found: Found, topology: Topology) -> None:
    """Each kind of collective where an axis needs it, and nowhere else."""
    holders = topology.context * (1 if layout.parallel.get("encoder_tensor") else topology.tensor)
    spread = layout.parallel.get("encoder_data", True) and holders > 1
    sequence = topology.tensor > 1 and layout.parallel.get("sequence", True)
    experts = topology.expert * topology.expert_tensor if MODELS[layout.model].text.moe else 1
    for number, rank in enumerate(found.ranks):
        stage = topology.coordinates(number).pipeline
        first = stage == 0
        shared = MODELS[layout.model].mtp.layers and topology.pipeline > 1 and stage in (0, topology.pipeline - 1)
        wanted = {
            GATHER: sequence or spread or topology.context > 1 or experts > 1,
            ALL_TO_ALL: topology.expert > 1 or (spread and first),
            P2P: topology.pipeline > 1,
            REDUCE: topology.data * topology.context > 1 or topology.tensor > 1 or shared,
        }
        for kind, needed in wanted.items():
            assert bool(rank.calls.get(kind)) == bool(needed), (number, kind, rank.calls)


def compare(layout: Layout) -> dict[str, Any]:
    right = reference(layout.model)
    found = run(layout.model, layout.precision, layout.parallel)
    topology = Topology.resolve(tiny.config(MODELS[layout.model], **layout.parallel).parallel, None)
    assert found.gradients.keys() == right.gradients.keys()
    far = {
        name: float(np.linalg.norm(gradient - right.gradients[name]) / np.linalg.norm(right.gradients[name]))
        for name, gradient in found.gradients.items()
    }
    held = [sum(shard.gradient.size for shard in rank.shards) for rank in found.ranks]
    total = sum(gradient.size for gradient in right.gradients.values())
    return {
        "found": found,
        "topology": topology,
        "loss": abs(found.loss - right.loss) / abs(right.loss),
        "gradient": max(far.values()),
        "worst": max(far, key=far.__getitem__),
        "share": (min(held) / total, max(held) / total),
        "calls": {
            kind: max(rank.calls.get(kind, 0) for rank in found.ranks) for kind in (REDUCE, GATHER, ALL_TO_ALL, P2P)
        },
    }


HEAD = (
    f"{'layout':42} {'ranks':>5} {'loss':>8} {'gradients':>9}  {'share of parameters':19}  collectives of a rank (most)"
)


def line(layout: Layout, made: dict[str, Any]) -> str:
    low, high = made["share"]
    share = f"{low:.2f}" if high - low < 5e-3 else f"{low:.2f} to {high:.2f}"
    calls = ", ".join(f"{kind} {count}" for kind, count in made["calls"].items() if count) or "none"
    numbers = f"{made['topology'].world:5} {made['loss']:8.1e} {made['gradient']:9.1e}"
    return f"{layout!s:42} {numbers}  {share:19}  {calls}"


@pytest.fixture(scope="module", autouse=True)
def printed_head(pytestconfig: pytest.Config) -> None:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\nfirst step against one process in fp32: largest relative differences\n{HEAD}")


@pytest.mark.parametrize(
    "layout", [pytest.param(one, id=str(one), marks=() if one.fast else pytest.mark.slow) for one in LAYOUTS]
)
def test_a_layout_is_the_single_process_and_does_its_part(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    made = compare(layout)
    with capsys.disabled():
        print(line(layout, made))
    assert made["loss"] <= LOSS_BOUND[layout.precision]
    assert made["gradient"] <= GRADIENT_BOUND[layout.precision], made["worst"]
    check_shares(layout, made["found"], made["topology"])
    check_travel(layout, made["found"], made["topology"])


def test_the_table_has_every_axis_and_enough_products() -> None:
    assert len(LAYOUTS) >= 24 and len({str(one) for one in LAYOUTS}) == len(LAYOUTS)
    axes = {axis for one in LAYOUTS for axis in one.parallel}
    assert axes >= {"tensor", "sequence", "pipeline", "virtual_pipeline", "expert", "expert_tensor", "context", "data"}


def test_a_layout_that_does_nothing_would_be_seen() -> None:
    """A run that claims TP2 and holds everything, as one process does."""
    layout, topology = row("TP2 + SP", tensor=2), Topology(tensor=2, expert_tensor=2)
    alone = reference("4.5V")
    pretended = Found(alone.loss, alone.gradients, alone.ranks * 2)
    with pytest.raises(AssertionError):
        check_shares(layout, pretended, topology)
    with pytest.raises(AssertionError):
        check_travel(layout, pretended, topology)

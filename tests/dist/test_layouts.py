"""The same steps under every layout give the single process's numbers.

Derivation. A step minimises sum_t w_t l_t / sum_t w_t over the tokens t of the global batch, plus the balance loss of
each pack averaged over packs. Neither depends on which rank holds a token, an expert, a layer or an image, so in exact
arithmetic loss and gradient norm are equal under all layouts; in fp32 they differ by the order of summation (measured:
1e-7 in loss, 7e-7 in gradient norm). The bounds are 1e-5 (loss) and 1e-4 (norm): an error of scale or a missing
reduction shows as 1e-2 or more. A token whose two best experts tie within rounding may be routed elsewhere, which
shows as about 1e-4 in the norm; the seed has no such token.

Not covered: bf16 (layouts differ by 1e-4 and more, as bf16 does); each single gradient, which the table of layouts has
(test_layout_table.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.schema import Config
from megatron_glmv.parallel.topology import Topology

STEPS = 10
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP1 PP1 EP1": {},
    "TP2 + SP": {"tensor": 2},
    "TP2 + SP, encoder replicated": {"tensor": 2, "encoder_data": False},
    "TP2 + SP, encoder sharded": {"tensor": 2, "encoder_tensor": True},
    "PP2": {"pipeline": 2},
    "PP2, uneven 1 + 3 layers": {"pipeline": 2, "pipeline_layers": (1, 3)},
    "PP2 x VPP2": {"pipeline": 2, "virtual_pipeline": 2},
    "EP2 (on DP2)": {"data": 2, "expert": 2},
    "DP2": {"data": 2},
    "DP2, overlapped": {"data": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "TP2 x PP2 x EP2": {"tensor": 2, "pipeline": 2, "expert": 2},
    "CP2": {"context": 2},
}
DENSE = {"TP2 + SP", "PP2", "PP2 x VPP2", "DP2", "CP2"}
SLOW: dict[str, dict[str, Any]] = {
    "CP2, encoder replicated": {"context": 2, "encoder_data": False},
    "CP2, overlapped": {"context": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "CP4": {"context": 4},
    "TP2 x CP2": {"tensor": 2, "context": 2},
    "CP2 x PP2": {"context": 2, "pipeline": 2},
    "CP2 x EP2": {"context": 2, "expert": 2},
    "CP2 x DP2": {"context": 2, "data": 2},
}
SLOW_DENSE: dict[str, dict[str, Any]] = {
    "TP2 without SP": {"tensor": 2, "sequence": False},
    "TP2 x CP2 without SP": {"tensor": 2, "context": 2, "sequence": False},
    "TP2 x CP2 without SP, encoder replicated": {
        "tensor": 2,
        "context": 2,
        "sequence": False,
        "encoder_data": False,
    },
}


def train_steps(config: Config, steps: int = STEPS) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step, in a rank."""
    import torch.distributed as dist

    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.train.feed import Feed
    from megatron_glmv.train.optimizer import build_optimizer, set_learning_rate, wrap_ddp
    from megatron_glmv.train.schedule import learning_rate
    from megatron_glmv.train.step import Trainer

    groups = init_groups(Topology.resolve(config.parallel, dist.get_world_size()))
    seed_all(config.train.seed)
    device = torch.device("cpu")
    chunks = wrap_ddp(build_model(config, groups, backend="torch", device=device), config.parallel, config.precision)
    optimizer = build_optimizer(config.optim, config, chunks)
    trainer = Trainer(chunks, optimizer, groups, device, config.data.pack_tokens)
    packs, size = config.train.global_batch, groups.topology.data
    owner = dist.get_process_group_ranks(groups.model)[0] == dist.get_rank()
    feed = Feed(tiny.Packs(packs, groups.dp_rank, size) if owner else None, groups, device, packs // size)
    history = []
    for step in range(1, steps + 1):
        set_learning_rate(optimizer, learning_rate(step, steps, config.optim))
        result = trainer.step(feed.next_step())
        history.append((result.loss, result.grad_norm))
    return history


def worst(ours: list[tuple[float, float]], theirs: list[tuple[float, float]], column: int) -> float:
    return max(abs(a[column] - b[column]) / abs(b[column]) for a, b in zip(ours, theirs, strict=True))


def run_layout(config: Config) -> list[tuple[float, float]]:
    world = Topology.resolve(config.parallel, None).world
    histories = run_ranks(train_steps, world, config)
    assert all(history == histories[0] for history in histories), "ranks report different numbers"
    return histories[0]  # type: ignore[no-any-return]


def compare(model: Any, layouts: dict[str, dict[str, Any]]) -> list[tuple[str, int, float, float]]:
    reference = run_layout(tiny.config(model))
    assert reference[0][0] > reference[-1][0], "the reference does not learn, so agreement would say little"
    rows = []
    for name, parallel in layouts.items():
        config = tiny.config(model, **parallel)
        ours = run_layout(config)
        rows.append(
            (name, Topology.resolve(config.parallel, None).world, worst(ours, reference, 0), worst(ours, reference, 1))
        )
    return rows


def show(title: str, rows: list[tuple[str, int, float, float]]) -> None:
    print(f"\n{title}, {STEPS} steps, fp32: largest relative difference to the single process")
    print(f"{'layout':32} {'ranks':>5} {'loss':>9} {'grad norm':>9}")
    for name, world, loss, norm in rows:
        print(f"{name:32} {world:5} {loss:9.1e} {norm:9.1e}")


@pytest.mark.parametrize("title, model, names", [("GLM-4.5V", tiny.MODEL, None), ("GLM-4.1V", tiny.DENSE, DENSE)])
def test_layouts_agree_with_one_process(title: str, model: Any, names: set[str] | None, capsys: Any) -> None:
    rows = compare(model, {k: v for k, v in LAYOUTS.items() if names is None or k in names})
    with capsys.disabled():
        show(title, rows)
    for name, _, loss, norm in rows:
        assert loss <= 1e-5, name
        assert norm <= 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "title, model, layouts", [("GLM-4.5V", tiny.MODEL, SLOW), ("GLM-4.1V", tiny.DENSE, SLOW_DENSE)]
)
def test_products_with_context_parallelism_agree(title: str, model: Any, layouts: Any, capsys: Any) -> None:
    rows = compare(model, layouts)
    with capsys.disabled():
        show(title, rows)
    for name, _, loss, norm in rows:
        assert loss <= 1e-5, name
        assert norm <= 1e-4, name


def test_a_wrong_encoder_reduction_would_be_seen() -> None:
    """The comparison can fail: without the sum over tensor ranks the encoder's gradients are partial."""
    config = tiny.config(tensor=2)
    reference = run_layout(tiny.config())
    broken = run_ranks(_without_encoder_reduction, 2, config)[0]
    assert worst(broken, reference, 1) > 1e-3


def _without_encoder_reduction(config: Config) -> list[tuple[float, float]]:
    from megatron_glmv.train import step

    step.reduce_encoder_gradients = lambda *_: None
    return train_steps(config)


def test_bf16_trains_under_tp_pp_ep_and_stays_near_fp32() -> None:
    """bf16 has 8 bits: 2^-8 = 4e-3 in each product; losses stay within 1 % over ten steps."""
    reference = run_layout(tiny.config())
    layout = {"tensor": 2, "pipeline": 2, "expert": 2}
    low = run_layout(replace(tiny.config(precision="bf16", **layout)))
    assert worst(low, reference, 0) < 1e-2
    assert low[-1][0] < low[0][0]

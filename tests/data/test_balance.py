"""Who computes what of a global batch: even work, and the same batch whatever the layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data import small_set
from data.small_set import VISION, data_config
from helpers import tiny

from megatron_glmv.config.load import compose
from megatron_glmv.data.balance import assign, imbalance
from megatron_glmv.data.cost import Cost
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.loader import PackLoader
from megatron_glmv.data.order import PackOrder
from megatron_glmv.data.pack_report import fill, in_order, one_epoch, preset, report, spread
from megatron_glmv.data.tokenizer import Tokenizer

COST = Cost(token=25.6e9, pair=1.13e6, patch=1.45e9, patch_pair=1.47e5)
"""About GLM-4.5V's."""


def test_each_pack_has_one_replica_and_all_have_equally_many() -> None:
    random = np.random.default_rng(0)
    for ranks in (1, 2, 3, 8):
        costs = random.lognormal(0, 1, ranks * 5).tolist()
        groups = assign(costs, ranks)
        assert sorted(i for group in groups for i in group) == list(range(len(costs)))
        assert {len(group) for group in groups} == {5}
        assert groups == assign(list(costs), ranks)
        in_turn = [list(range(r, len(costs), ranks)) for r in range(ranks)]
        assert imbalance(costs, groups) <= imbalance(costs, in_turn)
    with pytest.raises(ValueError, match="do not divide"):
        assign([1.0, 2.0, 3.0], 2)


def test_small_cases_come_near_the_optimum() -> None:
    """Against all ways to split ten packs into two fives."""
    from itertools import combinations

    random = np.random.default_rng(1)
    for _ in range(20):
        costs = random.lognormal(0, 0.6, 10).tolist()
        total = sum(costs)
        best = min(max(s := sum(costs[i] for i in half), total - s) for half in combinations(range(10), 5))
        ours = max(sum(costs[i] for i in group) for group in assign(costs, 2))
        assert ours <= best * 1.03


def test_the_cost_of_a_token_of_glm45v_is_that_of_its_active_parameters() -> None:
    """12.18e9 active parameters of the decoder and 0.62e9 of the output layer, two operations each; the router and
    the norms make the rest."""
    cost = Cost.of(compose(["experiment=glm45v_pretrain"]).model)
    assert cost.token / 2 == pytest.approx(12.803e9, rel=2e-3)
    assert cost.patch > 24 * 2 * (4 * 1536**2 + 3 * 1536 * 4096)


def test_a_prediction_layer_costs_its_parameters_and_the_output_layer_again() -> None:
    """Of the model that is trained: its matrices, each with two operations per token, of the experts the chosen share.
    Of attention one layer's part. The encoder is not asked again, so that text weighs more against pictures."""
    plain, further = (compose([f"model.mtp.layers={layers}", "experiment=tiny_pretrain"]).model for layers in (0, 1))
    text, moe = plain.text, plain.text.moe
    assert moe is not None
    sizes = {"eh_proj": 2 * text.hidden * text.hidden, "output": text.hidden * text.vocab}
    sizes["qkv"] = text.hidden * (text.heads + 2 * text.kv_heads) * text.head_dim
    sizes["o"] = text.heads * text.head_dim * text.hidden
    sizes["experts"] = 3 * text.hidden * (moe.topk * moe.ffn + moe.shared_ffn) + text.hidden * moe.experts
    before, after = Cost.of(plain), Cost.of(further)
    assert after.token - before.token == 2 * sum(sizes.values())
    assert after.pair / before.pair == pytest.approx((text.layers + 1) / text.layers)
    assert (after.patch, after.patch_pair) == (before.patch, before.patch_pair)


@pytest.mark.parametrize("budget", [8192, 32768])
def test_a_realistic_mixture_fills_packs_and_replicas(budget: int) -> None:
    tokens, patches = preset()
    lengths = np.minimum(tokens, budget)
    work = COST.samples(lengths, patches, np.maximum(1, patches // 2000))
    order = PackOrder(np.arange(len(tokens)), lengths, budget, 1024, seed=3)
    packs = one_epoch(order, len(tokens))
    assert fill(packs, lengths, budget).aligned >= 0.985
    assert fill(in_order(lengths.tolist(), budget), lengths, budget).aligned < 0.95
    per_pack = [float(work[pack].sum()) for pack in packs[:-1]]
    for ranks in (8, 64):
        balanced, plain, steps = spread(per_pack, ranks, 8)
        assert steps >= 1
        assert balanced <= 1.03
        assert plain > 1.05
    print("\n".join(report(tokens, work, budget, 1024, 3)))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("set")
    small_set.make(made, images=60, clips=0, texts=60, sound=True)
    return made


def loader(directory: Path, seed: int, rank: int, size: int, **options: object) -> PackLoader:
    return PackLoader(
        ShardDataset(directory / "shards"),
        data_config(**options),
        VISION,
        Tokenizer.load(directory / "tokenizer"),
        seed=seed,
        global_batch=12,
        dp_rank=rank,
        dp_size=size,
        cost=COST,
    )


def numbers(loaders: list[PackLoader], step: int) -> list[int]:
    return [number for one in loaders for number in one._numbers(step)]


def test_a_run_moved_from_four_to_two_to_three_replicas_sees_each_sample_as_the_unbroken_run(directory: Path) -> None:
    """Ten seeds, each stopped at random steps; ids only, nothing is decoded."""
    for seed in range(10):
        random = np.random.default_rng(seed)
        whole = loader(directory, seed, 0, 1)
        expected = [whole.step_ids(step) for step in range(12)]
        stops = sorted(random.choice(np.arange(1, 12), 2, replace=False).tolist())
        state, step = None, 0
        for size, until in zip((4, 2, 3), (*stops, 12), strict=True):
            loaders = [loader(directory, seed, rank, size) for rank in range(size)]
            for one in loaders:
                if state is not None:
                    one.load_state_dict(json.loads(state))
            while step < until:
                first = loaders[0]._first_pack(step)
                assert sorted(numbers(loaders, step)) == list(range(first, first + 12)), "each pack once"
                assert all(one.step_ids(step) == expected[step] for one in loaders)
                step += 1
            loaders[-1].seek(until)
            state = json.dumps(loaders[-1].state_dict())


def test_packs_of_replicas_are_the_packs_of_one(directory: Path) -> None:
    """With decoding, and with decoder processes in one of them."""
    with loader(directory, 3, 0, 1) as alone:
        expected = {batch.sample_ids for batch in alone.next_step()}
    parts = []
    for rank in range(2):
        with loader(directory, 3, rank, 2, workers=2 * rank) as one:
            parts.append(one.next_step())
    assert [len(part) for part in parts] == [6, 6]
    assert {batch.sample_ids for part in parts for batch in part} == expected
    assert Cost.of(tiny.MODEL).token > 0

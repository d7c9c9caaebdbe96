"""Validation packs: all of a small set, a fair subset of a large one, the same samples on any number of replicas.

A subset is fair where a sample's length does not decide: of k chosen samples, the share p of the set is found k p times
with standard deviation below sqrt(k p (1 - p)); 5 of those is once in 1.7 million.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from data import small_set
from data.small_set import VISION, data_config

from megatron_glmv.data.held_out import HeldOutOrder, choose
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.loader import PackLoader
from megatron_glmv.data.packing import aligned

BUDGET = 1536


@pytest.mark.parametrize("seed", range(8))
def test_every_sample_of_a_small_set_is_validated(seed: int) -> None:
    """Seven long pictures and one short text, in eight packs that hold 17 of them each."""
    groups = choose(np.array([90, 90, 90, 20, 90, 90, 90, 90]), BUDGET, 8, seed)
    assert len(groups) == 8 and set(chain.from_iterable(groups)) == set(range(8))
    counts = Counter(chain.from_iterable(groups))
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_large_set_gives_a_subset_whose_lengths_are_its_own() -> None:
    lengths = np.array([30] * 600 + [300] * 300 + [900] * 100)
    found: Counter[int] = Counter()
    for seed in range(20):
        groups = choose(lengths, BUDGET, 8, seed)
        chosen = list(chain.from_iterable(groups))
        assert len(groups) == 8 and len(set(chosen)) == len(chosen)
        assert all(sum(aligned(int(lengths[i])) for i in group) <= BUDGET for group in groups)
        found.update(int(lengths[i]) for i in chosen)
    total = sum(found.values())
    for length, share in ((30, 0.6), (300, 0.3), (900, 0.1)):
        assert abs(found[length] - total * share) < 5 * np.sqrt(total * share * (1 - share)), found


def test_packs_of_one_sample_each_and_one_more_pack_than_samples() -> None:
    assert sorted(choose(np.array([1536, 1536]), BUDGET, 3, 0)) in ([[0], [0], [1]], [[0], [1], [1]])
    order = HeldOutOrder(np.array([4, 7]), np.array([1536, 1536]), BUDGET, 2, 0)
    assert {order.pack(0), order.pack(1)} == {(4,), (7,)} and order.pack(2) == order.pack(0)


def test_replicas_share_the_packs(tmp_path: Path) -> None:
    dataset, tokenizer = small_set.make(tmp_path, clips=1)

    def ids(rank: int, size: int) -> list[tuple[str, ...]]:
        data = ShardDataset(dataset.directory)
        with PackLoader(
            data, data_config(), VISION, tokenizer, seed=5, global_batch=4, dp_rank=rank, dp_size=size, held_out=True
        ) as loader:
            return [batch.sample_ids for batch in loader.next_step()]

    whole = ids(0, 1)
    assert len(whole) == 4 and [*ids(0, 2), *ids(1, 2)] == [*whole[::2], *whole[1::2]]

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from megatron_glmv.data.errors import DataError
from megatron_glmv.data.order import PackOrder
from megatron_glmv.data.shuffle import permute, sample_order

LENGTHS = np.random.default_rng(5).integers(20, 700, 900)


def make(seed: int = 7, window: int = 128, budget: int = 2048) -> PackOrder:
    return PackOrder(np.arange(len(LENGTHS)) * 3, LENGTHS, budget, window, seed)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_each_key_gives_a_permutation(n: int) -> None:
    for key in (0, 1, 2**64 - 1):
        out = permute(np.arange(n), n, np.full(n, key, dtype=np.uint64))
        assert sorted(out.tolist()) == list(range(n))


def test_permutations_look_random() -> None:
    """Every place receives every item about equally often, and neighbours do not stay neighbours."""
    n, tries = 8, 4000
    where = np.stack([permute(np.arange(n), n, np.full(n, key, dtype=np.uint64)) for key in range(tries)])
    counts = np.stack([np.bincount(where[:, i], minlength=n) for i in range(n)])
    chi2 = ((counts - tries / n) ** 2 / (tries / n)).sum(axis=1)
    assert chi2.max() < 30  # 7 degrees of freedom: 30 has p = 1e-4
    long = sample_order(0, 10000, 10000, seed=1)
    assert abs(np.corrcoef(long[:-1], long[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(10000), long)[0, 1]) < 0.05


def test_epochs_hold_each_sample_once_in_different_orders() -> None:
    first, second = sample_order(0, 900, 900, 7), sample_order(900, 900, 900, 7)
    assert sorted(first) == sorted(second) == list(range(900))
    assert (first != second).mean() > 0.9
    assert (sample_order(850, 100, 900, 7) == np.concatenate([first[850:], second[:50]])).all()


def test_samples_come_exactly_once_an_epoch_whatever_the_windows_leave_over() -> None:
    order = make()
    seen: Counter[int] = Counter()
    for number in range(600):
        seen.update(order.pack(number))
    state = order.state_at(600)
    waiting = Counter((np.array(state["carry"]) * 3).tolist())
    total = state["window"] * 128
    packed = Counter[int]()
    for number in range(state["packs_before_window"]):
        packed.update(order.pack(number))
    stream = Counter((sample_order(0, total, 900, 7) * 3).tolist())
    assert packed + waiting == stream
    assert max(seen.values()) - min(seen.values()) <= 2


def test_any_pack_is_found_in_any_order_of_asking() -> None:
    first = make()
    straight = [first.pack(number) for number in range(300)]
    order = make()
    for number in np.random.default_rng(0).permutation(300).tolist():
        assert order.pack(number) == straight[number]


def test_a_state_continues_from_any_pack_through_json() -> None:
    whole = make()
    for number in (0, 1, 57, 199, 1000):
        state = json.loads(json.dumps(whole.state_at(number)))
        resumed = make()
        resumed.load_state(state)
        assert [resumed.pack(number + k) for k in range(40)] == [whole.pack(number + k) for k in range(40)]
        assert resumed.pack(0) == whole.pack(0)  # also what lies before the state


@pytest.mark.parametrize("other", [{"seed": 8}, {"window": 64}, {"budget": 4096}])
def test_a_state_of_another_order_is_refused(other: dict[str, int]) -> None:
    with pytest.raises(DataError, match="data position"):
        make(**other).load_state(make().state_at(10))


def test_seeds_give_different_packs() -> None:
    assert [make(seed=1).pack(n) for n in range(5)] != [make(seed=2).pack(n) for n in range(5)]


def test_a_data_set_smaller_than_a_pack_still_fills_packs() -> None:
    lengths = np.array([100, 60, 30])
    order = PackOrder(np.arange(3), lengths, 2048, 2, seed=0)
    filled = [sum(lengths[i] for i in order.pack(number)) for number in range(20)]
    assert min(filled) > 1700


def test_no_usable_sample_is_a_data_error() -> None:
    with pytest.raises(DataError, match="pack_tokens"):
        PackOrder(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 64, 8, 0)

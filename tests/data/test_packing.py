from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from megatron_glmv.data.order import PackOrder
from megatron_glmv.data.packing import ALIGN, aligned, fit, pack_window


def mixture(count: int, seed: int = 0) -> NDArray[np.int64]:
    """Token counts like a VLM mixture's: captions and short questions, single images, documents and videos."""
    random = np.random.default_rng(seed)
    kind = random.choice(4, count, p=[0.35, 0.4, 0.17, 0.08])
    centre, spread = np.array([5.0, 6.3, 7.4, 8.6])[kind], np.array([0.7, 0.7, 0.6, 0.6])[kind]
    return np.clip(np.exp(random.normal(centre, spread)), 24, 30000).astype(np.int64)


def test_every_sample_is_packed_once_and_no_pack_overflows() -> None:
    lengths = np.minimum(mixture(3000), 4096).tolist()
    packs = pack_window(lengths, 4096)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert max(sum(aligned(lengths[i]) for i in pack) for pack in packs) <= 4096


def test_packing_is_a_function_of_its_arguments() -> None:
    lengths = [40, 16, 16, 33, 16, 64, 1]
    assert pack_window(lengths, 64) == pack_window(list(lengths), 64)
    assert pack_window(lengths, 64) == [[5], [0, 1], [3, 2], [4, 6]]


@pytest.mark.parametrize("length", [0, 65, -3])
def test_a_length_that_fits_no_pack_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack_window([16, length], 64)


def test_text_is_truncated_and_media_dropped_where_they_exceed_the_pack() -> None:
    kept = fit(np.array([10, 100, 100, 0, 64]), np.array([True, False, True, True, True]), 64)
    assert kept.samples.tolist() == [0, 1, 4]
    assert kept.lengths.tolist() == [10, 64, 64]
    assert (kept.truncated, kept.dropped.tolist()) == (1, [2])
    with pytest.raises(ValueError, match="multiple of 16"):
        fit(np.array([10]), np.array([False]), 100)


@pytest.mark.parametrize("budget", [8192, 32768])
def test_packs_of_a_realistic_mixture_are_full(budget: int) -> None:
    lengths = np.minimum(mixture(20000), budget)
    order = PackOrder(np.arange(len(lengths)), lengths, budget, 1024, seed=3)
    count = int(lengths.sum()) // budget
    used = sum(int(lengths[list(order.pack(p))].sum()) for p in range(count))
    slots = sum(int((-(-lengths[list(order.pack(p))] // ALIGN) * ALIGN).sum()) for p in range(count))
    print(
        f"budget {budget}: fill {used / count / budget:.4f}, with alignment {slots / count / budget:.4f}, {count} packs"
    )
    assert used / count / budget >= 0.97

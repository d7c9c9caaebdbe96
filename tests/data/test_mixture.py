"""Shares of domains in the stream, caps, schedules, and resuming in the middle of them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data import small_set
from data.small_set import VISION, data_config

from megatron_glmv.config.load import compose, from_dict, to_json
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.loader import PackLoader
from megatron_glmv.data.mixture import Mixture, build
from megatron_glmv.data.order import PackOrder
from megatron_glmv.data.tokenizer import Tokenizer

NAMES = ["image"] * 300 + ["text"] * 100 + ["video"] * 20
LENGTHS = np.random.default_rng(5).integers(20, 700, len(NAMES))


def mixture(seed: int = 3, **options: object) -> Mixture:
    made = build(data_config(**options), NAMES, seed)
    assert made is not None
    return made


def stream(made: Mixture, blocks: int, size: int = 100) -> list[list[int]]:
    taken, out = made.nothing_taken, []
    for number in range(blocks):
        members, taken = made.block(number, size, taken)
        out.append(members.tolist())
    return out


def shares(blocks: list[list[int]]) -> Counter[str]:
    return Counter(NAMES[i] for block in blocks for i in block)


def test_shares_are_the_weights_in_every_block_and_exact_in_the_mean() -> None:
    blocks = stream(mixture(mixture={"image": 5, "video": 1, "text": 1}), 280)
    for block in blocks:
        found = shares([block])
        assert len(block) == 100
        assert abs(found["video"] - 100 / 7) < 1 and abs(found["image"] - 500 / 7) < 2
    whole = shares(blocks)
    assert abs(whole["text"] - 4000) < 12, "4000 +- a few: the offset of a block rounds up as often as down"


def test_each_domain_runs_through_its_own_epochs() -> None:
    blocks = stream(mixture(mixture={"image": 1, "text": 1}), 12)
    order = [i for block in blocks for i in block]
    for name, size in (("image", 300), ("text", 100)):
        seen = Counter(i for i in order if NAMES[i] == name)
        assert len(seen) == size
        assert max(seen.values()) - min(seen.values()) <= 1
    assert "video" not in shares(blocks), "a domain without a weight is left out"


def test_a_domain_at_its_cap_leaves_its_share_to_the_others() -> None:
    made = mixture(mixture={"image": 1, "text": 1, "video": 2}, max_epochs={"video": 2.5})
    blocks = stream(made, 10)
    assert shares(blocks)["video"] == 50
    assert shares(blocks[:1])["video"] == 50
    assert abs(shares(blocks[2:])["image"] - 400) <= 8
    with pytest.raises(DataError, match="used up after"):
        stream(mixture(mixture={"video": 1}, max_epochs={"video": 2}), 2)


def test_weights_change_by_schedule() -> None:
    made = mixture(mixture={"image": 1}, mixture_schedule={500: {"text": 1}, 800: {"image": 1, "text": 3}})
    blocks = stream(made, 20)
    assert shares(blocks[:5]).keys() == {"image"}
    assert shares(blocks[5:8]).keys() == {"text"}
    assert shares(blocks[8:])["text"] == pytest.approx(900, abs=12)


def test_it_is_a_function_of_the_seed_and_looks_shuffled() -> None:
    weights = {"image": 1, "text": 1}
    assert stream(mixture(mixture=weights), 3) == stream(mixture(mixture=weights), 3)
    assert stream(mixture(mixture=weights), 3) != stream(mixture(4, mixture=weights), 3)
    kinds = [NAMES[i] == "text" for i in stream(mixture(mixture=weights), 1)[0]]
    changes = sum(a != b for a, b in pairwise(kinds))
    assert 30 < changes < 70


def order(**options: object) -> PackOrder:
    made = mixture(mixture={"image": 1, "text": 2}, mixture_schedule={600: {"video": 1, "text": 1}}, **options)
    return PackOrder(np.arange(len(NAMES)), LENGTHS, 2048, 64, 3, made)


def test_packs_resume_in_the_middle_of_a_mixture() -> None:
    whole = order()
    for number in (0, 31, 100, 300):
        resumed = order()
        resumed.load_state(json.loads(json.dumps(whole.state_at(number))))
        assert [resumed.pack(number + k) for k in range(30)] == [whole.pack(number + k) for k in range(30)]
        assert resumed.pack(0) == whole.pack(0)
    with pytest.raises(DataError, match="mixture"):
        order(max_epochs={"text": 100}).load_state(whole.state_at(5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixture": {"images": 1.0}}, "no usable sample of domain 'images'; there are image, text, video"),
        ({"mixture": {"image": -1.0}}, "not a number from 0 on"),
        ({"mixture": {"image": 0.0}}, "every weight is 0"),
        ({"mixture": {"image": 1.0}, "max_epochs": {"vdeo": 1.0}}, "vdeo"),
        ({"max_epochs": {"image": 1.0}}, "has no weights"),
    ],
)
def test_what_makes_no_mixture_is_refused_by_name(options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        mixture(**options)


def test_a_loader_takes_it_from_the_command_line(tmp_path: Path) -> None:
    config = compose(
        ["experiment=tiny_pretrain", "data.mixture={image:1,text:3}", "data.mixture_schedule={4000:{image:1}}"]
    )
    assert from_dict(json.loads(json.dumps(to_json(config)))) == config
    assert config.data.mixture_schedule == {4000: {"image": 1.0}}
    small_set.make(tmp_path, images=20, clips=0, texts=20, sound=True)
    data = data_config(mixture=config.data.mixture)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer")
    dataset = ShardDataset(tmp_path / "shards")
    loader = PackLoader(dataset, data, VISION, tokenizer, seed=1, global_batch=8)
    found = Counter(key.split("-")[0] for step in range(12) for key in loader.step_ids(step))
    assert found["text"] / found["image"] == pytest.approx(3, rel=0.15)

"""The steps' own rules, each against cases whose answer is known without them."""

from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
from data import planted
from data.natural import photograph
from PIL import Image

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.prepare import hashing, language, near, ngrams, options, text
from megatron_glmv.data.prepare.balance import Balance
from megatron_glmv.data.prepare.heuristics import repetition, text_breaks
from megatron_glmv.data.prepare.options import LanguageOptions, Rules


def hashed(image: Image.Image) -> hashing.Hash:
    return hashing.perceptual(hashing.grey(image))


def test_a_photograph_keeps_its_hash_through_compression_and_size_and_shares_it_with_no_other() -> None:
    original = Image.open(io.BytesIO(photograph())).convert("RGB")
    own = hashed(original)
    apart = {}
    for quality in (30, 60, 90):
        for size in (0.25, 0.5, 1.0, 1.7):
            changed = original.resize((int(640 * size), int(427 * size)), Image.Resampling.BICUBIC)
            again = Image.open(io.BytesIO(planted.encoded(changed, quality=quality)))
            apart[quality, size] = int(hashing.bits_between(own, hashed(again)))
    print("bits changed:", sorted(apart.values()))
    assert max(apart.values()) <= 14
    others = [hashed(planted.picture(n)) for n in range(200)] + [own]
    rows = np.stack(others)
    distances = hashing.bits_between(rows[:, None], rows[None])[np.triu_indices(len(rows), 1)]
    print("strangers:", int(distances.min()), float(np.median(distances)))
    assert distances.min() > 60


def test_banding_finds_what_comparing_all_with_all_finds() -> None:
    """4,000 random hashes, 400 of them copies with 0-24 bits flipped: recall is what it promises, and the number of
    full comparisons stays near count x bands instead of count^2 / 2."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (4000, 32)).astype(np.uint8)
    for copy in range(400):
        bits = np.unpackbits(rows[copy])
        bits[random.permutation(256)[: copy % 25]] ^= 1
        rows[3600 + copy] = np.packbits(bits)
    compared = 0

    def judge(a: near.Indices, b: near.Indices) -> np.ndarray:
        nonlocal compared
        compared += len(a)
        return hashing.bits_between(rows[a], rows[b]) <= 24

    gone = near.without_near(rows, judge, 24 / 256, 0.999)
    assert gone == {3600 + copy: copy for copy in range(400)}
    bands, bits = near.bands(4000, 24 / 256, 0.999)
    print(f"{bands} bands of {bits} bits, {compared:,} comparisons of {4000 * 3999 // 2:,} pairs")
    assert compared < 4000 * 3999 // 2 / 10
    counts = [near.bands(n, 24 / 256, 0.999) for n in (10**4, 10**6, 10**8)]
    assert [bits for _, bits in counts] == [14, 20, 27]
    for count, width in counts:
        assert (1 - (1 - 24 / 256) ** width) ** count <= 0.001


def test_a_crowd_of_copies_costs_one_comparison_each_in_a_band() -> None:
    rows = np.zeros((5000, 32), np.uint8)
    compared = 0

    def judge(a: near.Indices, b: near.Indices) -> np.ndarray:
        nonlocal compared
        compared += len(a)
        return np.ones(len(a), np.bool_)

    gone = near.without_near(rows, judge, 24 / 256, 0.9)
    assert gone == dict.fromkeys(range(1, 5000), 0)
    assert compared == 4999 * near.bands(5000, 24 / 256, 0.9)[0]


def test_a_sample_goes_only_for_one_that_stays() -> None:
    """A chain, each within reach of its neighbours alone: every second one stays."""
    rows = np.zeros((5, 32), np.uint8)
    for n in range(5):
        rows[n] = np.packbits(np.arange(256) < 20 * n)
    gone = near.without_near(rows, lambda a, b: hashing.bits_between(rows[a], rows[b]) <= 24, 24 / 256, 0.9999)
    assert gone == {1: 0, 3: 2}


def test_words_and_sequences() -> None:
    assert text.words("A red, RED ｒｏｃｋｅｔ! 火箭2枚") == ["a", "red", "red", "rocket", "火", "箭", "2", "枚"]
    assert text.digest("A red rocket.") == text.digest("a  RED—rocket") != text.digest("red a rocket")
    found = ngrams.numbers(["a", "b", "c", "a", "b"])
    pairs = ngrams.sequences(found, 2).tolist()
    assert pairs[0] == pairs[3] and len(set(pairs)) == 3
    assert len(ngrams.sequences(found, 6)) == 0
    assert ngrams.sequences(found[:2], 2)[0] != ngrams.sequences(found[1::-1], 2)[0], "order counts"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ("A lamp and a small book lie on the old table.", ""),
        ("Lamp", ""),
        ("一盏灯放在桌子上", ""),
        ("The chart of 销售 shows 中文 labels and growth", ""),
        ("For all ε > 0 there is δ with f(x) < ε", ""),
        ("Ein kleines Buch liegt auf dem alten Tisch in der Küche", "language"),
        ("Le petit chien court très vite dans la rue", "language"),
        ("テーブルの上にランプがあります", "script"),
        ("테이블 위에 램프가 있습니다", "script"),
        ("2020: 13, 14 / 15", ""),
    ],
)
def test_languages(found: str, reason: str) -> None:
    assert language.foreign(found, LanguageOptions(), language.classifier())[0] == reason


def test_without_the_classifier_scripts_are_still_checked() -> None:
    assert language.foreign("Das ist ein Satz in deutscher Sprache", LanguageOptions(), None)[0] == ""
    assert language.foreign("Старая лампа", LanguageOptions(), None)[0] == "script"


def test_repetition_counts_words_in_sequences_seen_before() -> None:
    assert repetition(list("abcdefghij")) == 0
    assert repetition([*"abcdefgh", *"abcdefgh"]) == 8 / 16
    assert repetition(["x"] * 20) == pytest.approx(19 / 20, abs=0.05)
    assert text_breaks("go " * 30, Rules())[0] == "repetition"
    assert text_breaks("go " * 19, Rules())[0] == "", "too short to be judged"


def test_balance_thins_frequent_concepts_to_the_cap_and_keeps_rare_ones() -> None:
    """n samples of one concept stay with cap / n each: binomial, mean cap, deviation under sqrt(cap)."""
    corpus = [{"key": f"lamp-{n}", "concepts": ["lamp"]} for n in range(4000)]
    corpus += [{"key": f"harp-{n}", "concepts": ["harp", "lamp"]} for n in range(40)]
    corpus += [{"key": f"none-{n}", "concepts": []} for n in range(5)] + [{"key": "asked"}]
    chosen = options.load("", ["balance.cap=200", "balance.unmatched=false"])
    lines = list(Balance().lines(corpus, chosen))
    kept = Counter(line["key"].partition("-")[0] for line in lines if "removed" not in line)
    print(dict(kept))
    assert kept["harp"] == 40 and kept["asked"] == 1 and kept["none"] == 0
    assert abs(kept["lamp"] - 200 * 4000 / 4040) < 4 * math.sqrt(200)
    shuffled = list(Balance().lines(corpus[::-1], chosen))
    assert sorted(map(str, shuffled)) == sorted(map(str, lines))
    other = list(Balance().lines(corpus, options.load("", ["balance.cap=200", "seed=1"])))
    assert [line for line in other if "removed" in line] != [line for line in lines if "removed" in line]
    root = Counter(
        line["key"].partition("-")[0]
        for line in Balance().lines(corpus, options.load("", ["balance.cap=200", "balance.temperature=0.5"]))
        if "removed" not in line
    )
    expected = 4000 * math.sqrt(200 / 4040)
    assert abs(root["lamp"] - expected) < 4 * math.sqrt(expected)


def test_rules_of_a_domain_build_on_the_default_and_wrong_options_are_named() -> None:
    chosen = options.load("rules: {default: {min_side: 40}, ocr: {max_aspect: 30}, caption: {min_words: 9}}")
    assert chosen.rules_of("ocr").min_side == 40 and chosen.rules_of("ocr").max_aspect == 30
    assert chosen.rules_of("caption").min_words == 9 and chosen.rules_of("caption").min_side == 200
    assert chosen.rules_of("else").max_aspect == Rules().max_aspect
    for wrong, name in {
        "recaption.ratio=2": "recaption.ratio",
        "duplicates.distance=90": "duplicates.distance",
        "recaption.endpoint=file:///etc": "recaption.endpoint",
        "contamination.min_ngram=40": "contamination.min_ngram",
        "seed=x": "seed",
    }.items():
        with pytest.raises(ConfigError, match=name):
            options.load("", [wrong])

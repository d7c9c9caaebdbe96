"""The CLIP-score filter with a tiny random CLIP that the test writes: scores, thresholds, refusals.

Random weights say nothing of pictures; what is tested is that scores are those of transformers' own model fed one pair
at a time, that the threshold cuts exactly, and that only captions are judged.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data import planted
from PIL import Image

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.patches import CLIP_MEAN, CLIP_STD
from megatron_glmv.data.prepare import options
from megatron_glmv.data.prepare.clip_model import importable
from megatron_glmv.data.prepare.pipeline import Preparation

SIDE, COUNT = 32, 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer, with a tokenizer of single bytes."""
    with importable():
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    torch.manual_seed(1)
    directory = tmp_path_factory.mktemp("clip")
    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(vocabulary), "max_position_embeddings": 77},
        vision_config={**small, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(directory)
    vocabulary_file, merges = str(directory / "vocab.json"), str(directory / "merges.txt")
    CLIPTokenizer.from_pretrained(directory, vocab_file=vocabulary_file, merges_file=merges).save_pretrained(directory)
    said = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
    said |= {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    (directory / "preprocessor_config.json").write_text(json.dumps(said))
    return directory


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = planted.Corpus()
    for n in range(COUNT):
        made.add(f"pair-{n}", planted.caption(planted.words(n)), {"0.jpg": planted.encoded(planted.picture(n))})
    made.add("asked", planted.caption("A lamp", domain="vqa"), {"0.jpg": planted.encoded(planted.picture(77))})
    directory = tmp_path_factory.mktemp("pairs") / "raw"
    made.write(directory, 7)
    return directory


def reference(model: Path) -> dict[str, float]:
    """One pair at a time, the picture cut by hand: 360 x 280 to 41 x 32, and the middle 32 columns of that."""
    from transformers import AutoTokenizer, CLIPModel

    clip, tokenizer = CLIPModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    scores: dict[str, float] = {}
    for n in range(COUNT):
        tokens: Any = tokenizer([planted.words(n)], return_tensors="pt", truncation=True, max_length=77)
        small = planted.picture(n).resize((41, SIDE), Image.Resampling.BICUBIC).crop((4, 0, 4 + SIDE, SIDE))
        pixels = (torch.tensor(np.asarray(small)) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
        with torch.no_grad():
            out = clip(pixel_values=pixels.permute(2, 0, 1)[None], **tokens)
        scores[f"pair-{n}"] = float((out.image_embeds * out.text_embeds).sum())
    return scores


def scores(out: Path) -> dict[str, float]:
    lines = [line for p in (out / "prepare" / "clip").glob("*.jsonl") for line in p.read_text().splitlines()]
    return {line["key"]: line["score"] for line in map(json.loads, lines) if "score" in line}


def test_scores_are_the_models_and_the_threshold_cuts_exactly(model: Path, raw: Path, tmp_path: Path) -> None:
    """In a process of its own, as the command is: where the CPU platform's stand-ins for torch.cuda are installed, as
    other tests do in this one, transformers leaves CLIP's position ids uninitialised."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        own.submit(_scored_and_cut, model, raw, tmp_path).result()


def _scored_and_cut(model: Path, raw: Path, tmp_path: Path) -> None:
    chosen = options.load("", [f"clip.model={model}", "clip.min_score=-1", "clip.batch=4"])
    Preparation(raw, tmp_path / "all", chosen).run("all")
    found, expected = scores(tmp_path / "all"), reference(model)
    assert found.keys() == expected.keys(), "captions alone are judged"
    apart = max(abs(found[key] - expected[key]) for key in expected)
    print(
        f"largest difference from one pair at a time: {apart:.4f}; scores {min(found.values())}..{max(found.values())}"
    )
    assert apart < 0.01, "JPEG loss and rounding to four digits"
    assert max(found.values()) - min(found.values()) > 0.02, "the model tells pairs apart"
    cut = sorted(found.values())[COUNT // 2]
    chosen = options.load("", [f"clip.model={model}", f"clip.min_score={cut}", "clip.batch=4"])
    Preparation(raw, tmp_path / "cut", chosen).run("all")
    gone = {json.loads(line)["key"] for line in (tmp_path / "cut" / "removed.jsonl").read_text().splitlines()}
    assert gone == {key for key, score in found.items() if score <= cut}


def test_what_is_no_safe_model_is_refused(model: Path, raw: Path, tmp_path: Path) -> None:
    def refuse(directory: Path, match: str) -> None:
        with pytest.raises(ConfigError, match=match):
            Preparation(raw, tmp_path / "out", options.load("", [f"clip.model={directory}"])).run("all")

    refuse(tmp_path / "none", "is not a directory")
    pickled = tmp_path / "pickled"
    shutil.copytree(model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refuse(pickled, "pickled weights are not read")
    config = json.loads((pickled / "config.json").read_text())
    (pickled / "config.json").write_text(json.dumps(config | {"model_type": "mystery"}))
    refuse(pickled, "is a 'mystery'")

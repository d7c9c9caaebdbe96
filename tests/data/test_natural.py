"""A natural photograph and a natural clip through the whole path: shards, index, packs, one forward and backward.

Procedural pictures are smooth, small and few in kind; these are what cameras and encoders really write. What is checked
is that they arrive (grids, decoders, pixels near the source) and train (a finite loss, gradients in the vision
encoder); not what a model learns from them.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from data.media_files import unpatchify
from data.natural import film, film_as_vp9, photograph
from data.small_set import ask
from helpers import tiny
from helpers.ranks import run_ranks
from PIL import Image

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.lengths import Layouts
from megatron_glmv.data.loader import PackLoader
from megatron_glmv.data.make import make_shards
from megatron_glmv.data.tokenizer import Tokenizer, train_tokenizer
from megatron_glmv.data.types import Json, PackedBatch

VISION = VisionConfig(depth=1, hidden=8, heads=1, ffn=8, merger_ffn=8)
DATA = DataConfig(pack_tokens=2048, pack_window=4, image_max_pixels=400_000, video_max_pixels=600_000, workers=1)


@pytest.fixture(scope="module")
def natural(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("natural")
    media = {"rocket.jpg": photograph(), "bikes.mp4": film(), "bikes.webm": film_as_vp9()}
    for name, data in media.items():
        (directory / name).write_bytes(data)
    conversations: list[Json] = [
        {"id": "photo", **ask("image", "rocket.jpg", [("What is this?", "a rocket")])},
        {"id": "film", **ask("video", "bikes.mp4", [("What goes past?", "two bikes")])},
        {"id": "film-vp9", **ask("video", "bikes.webm", [("What goes past?", "two bikes")])},
    ]
    (directory / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in conversations))
    made = make_shards(directory / "shards", jsonl=directory / "all.jsonl")
    assert (made.samples, made.rejected, made.media) == (3, 0, 3)
    train_tokenizer(["What is this? a rocket What goes past? two bikes"] * 9, directory / "tokenizer", 320)
    return directory


def loader(directory: Path, data: DataConfig, vision: VisionConfig) -> PackLoader:
    tokenizer = Tokenizer.load(directory / "tokenizer")
    return PackLoader(ShardDataset(directory / "shards"), data, vision, tokenizer, seed=1, global_batch=1)


def packs(directory: Path, data: DataConfig, vision: VisionConfig) -> list[PackedBatch]:
    """Packs until each sample was seen."""
    found: list[PackedBatch] = []
    with loader(directory, data, vision) as packs:
        while len({key for pack in found for key in pack.sample_ids}) < 3:
            found += packs.next_step()
            assert len(found) < 9
    return found


def test_they_arrive_as_they_are(natural: Path) -> None:
    layouts = Layouts(ShardDataset(natural / "shards"), Tokenizer.load(natural / "tokenizer"), DATA, VISION)
    sources = {"photo": [np.array(Image.open(io.BytesIO(photograph())).convert("RGB"))]}
    for key, data in (("film", film()), ("film-vp9", film())):
        with av.open(io.BytesIO(data)) as box:
            sources[key] = [frame.to_ndarray(format="rgb24") for frame in box.decode(video=0)]
    seen: dict[str, str] = {}
    for pack in packs(natural, DATA, VISION):
        at = 0
        assert pack.failed == ()
        for key, grid, decoder in zip(pack.sample_ids, pack.grids.prod(1).tolist(), pack.decoders, strict=True):
            planned = layouts(layouts.dataset.find(key)).plans[0]
            assert planned.grid.patches == grid
            frames = unpatchify(pack.pixel_values[at : at + grid], planned)
            at += grid
            seen[key] = decoder
            for frame, number in zip(frames, planned.frames or (0, 0), strict=True):
                source = Image.fromarray(sources[key][number]).resize((planned.width, planned.height), Image.BICUBIC)
                mean = np.abs(frame.astype(int) - np.array(source)).mean()
                assert mean < (12 if key == "film-vp9" else 3), (key, number, mean)
    assert seen == {"photo": "dali", "film": "pyav", "film-vp9": "dali"}
    assert layouts(layouts.dataset.find("film")).plans[0].frames == tuple(int(-(-25 * i // 2)) for i in range(20))


def _train_on(directory: str) -> tuple[int, float, float]:
    """(samples, loss a token, norm of the vision encoder's gradient) of one pack that holds all three."""
    from megatron_glmv.model.build import build_model
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.parallel.topology import Topology
    from megatron_glmv.train.losses import weighted_sum
    from megatron_glmv.train.step import model_inputs

    vision = replace(tiny.VISION, patch=14)
    data = replace(DATA, workers=0, image_max_pixels=60_000, video_max_pixels=150_000, pack_tokens=1024)
    config = tiny.config(replace(tiny.MODEL, vision=vision, text=replace(tiny.TEXT, vocab=320)))
    pack = packs(Path(directory), data, vision)[0]
    groups = init_groups(Topology.resolve(config.parallel, 1))
    seed_all(config.train.seed)
    (model,) = build_model(config, groups, backend="torch", device=torch.device("cpu"))
    inputs = model_inputs(pack, torch.device("cpu"), model.vision)
    losses = model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)[0]
    loss = weighted_sum(losses, pack.loss_weights) / pack.loss_weights.sum()
    loss.backward()
    gradients = [p.grad.norm() for p in model.vision.parameters() if p.grad is not None]
    return len(set(pack.sample_ids)), float(loss), float(torch.stack(gradients).norm())


def test_one_micro_batch_of_them_trains(natural: Path) -> None:
    samples, loss, gradient = run_ranks(_train_on, 1, str(natural))[0]
    assert samples == 3
    assert 4 < loss < 8, "an untrained model over 320 tokens: about ln(320) = 5.8"
    assert 0 < gradient < 1e4

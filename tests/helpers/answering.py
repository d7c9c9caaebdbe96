"""A run directory whose checkpoint can answer: random weights, a trained tokenizer, real pictures and clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch
import yaml
from helpers import tiny
from PIL import Image

from megatron_glmv.config.load import fingerprint, to_json
from megatron_glmv.config.schema import Config, DataConfig
from megatron_glmv.data.tokenizer import Tokenizer, train_tokenizer

VOCAB = 320
WORDS = ("How many red circles are there? Which colour is it? Describe the video and the picture. One two three.",)
SIZES = {"a.png": (32, 24), "b.png": (32, 24), "c.png": (24, 40)}
"""Pictures by name: width, height. A token of the tiny model covers 8 x 8 pixels."""


def answering_config(run_dir: Path, precision: str = "fp32", head_dim: int = 16) -> Config:
    """Weights wide enough for a random model to say different things: logits differ by far more than rounding."""
    section = {16: (1, 1, 2), 32: (2, 3, 3)}[head_dim]
    text = replace(tiny.TEXT, vocab=VOCAB, init_std=0.2, head_dim=head_dim, mrope_section=section)
    model = replace(tiny.MODEL, text=text)
    data = DataConfig(
        path=str(run_dir / "data" / "train"), image_min_pixels=512, video_min_pixels=512, video_fps=4.0, pack_tokens=256
    )
    return replace(tiny.config(model, precision), experiment="answering", data=data, run_dir=str(run_dir))


def write_media(folder: Path) -> None:
    """Noise pictures a.png, b.png (of one size), c.png; clips v.webm (8 frames) and w.webm (4 frames)."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(5)
    for name, (width, height) in SIZES.items():
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    for name, count in (("v.webm", 8), ("w.webm", 4)):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libvpx-vp9", rate=4)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
            for _ in range(count):
                blocks = np.kron(noise.integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(blocks)))
            container.mux(stream.encode(None))


def make_answering_run(run_dir: Path, precision: str = "fp32", head_dim: int = 16, *, brief: bool = False) -> Path:
    """Writes config.yaml, data/tokenizer, data/media and checkpoints/step_3; returns the checkpoint's directory. brief:
    about every other token ends the turn, which a random model otherwise seldom does."""
    from megatron_glmv.stages.session import single_process

    config = answering_config(run_dir, precision, head_dim)
    train_tokenizer(WORDS, run_dir / "data" / "tokenizer", VOCAB)
    write_media(run_dir / "data" / "media")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(to_json(config)))
    tokenizer = Tokenizer.load(run_dir / "data" / "tokenizer")
    with single_process(config) as session:
        from megatron_glmv.checkpoint.manager import CheckpointManager, Identity
        from megatron_glmv.model.build import build_model, sharding_metadata

        chunks = build_model(config, session.groups, backend=session.backend, device=session.device)
        if brief:
            with torch.no_grad():
                chunks[0].language.output_layer.weight[tokenizer.special("<|user|>")] *= 6
        identity = Identity(
            model=to_json(config)["model"],
            tokenizer_fingerprint=tokenizer.fingerprint,
            config_fingerprint=fingerprint(config),
        )
        topology, metadata = session.groups.topology.to_json(), sharding_metadata(session.groups)
        manager = CheckpointManager(run_dir / "checkpoints", config.checkpoint, identity, topology, metadata)
        return manager.save(3, chunks, None, {"step": 3})

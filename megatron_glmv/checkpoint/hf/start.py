"""Where pre-training starts: a text model's decoder, AIMv2's encoder, and fresh weights between the two.

    decoder                     GLM-4.5-Air (glm4_moe) or GLM-4-9B-0414 (glm4), as they are; Air's prediction layer
                                where it is wanted
    encoder                     AIMv2, its patch kernel given a time axis (aimv2.py)
    downsampling and merger     fresh: N(0, init_std), norms one, biases zero; a pure function of seed, name and row

What the paper does not say is an option (arXiv 2507.01006 names AIMv2-Huge and GLM-4.5-Air, and no more).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megatron_glmv.checkpoint.hf.aimv2 import KERNEL, aimv2_config, aimv2_mapping, check_inflation, inflate, kernel_name
from megatron_glmv.checkpoint.hf.config import AIR, GLM4, check_fixed, rope_of, text_from_hf
from megatron_glmv.checkpoint.hf.mapping import NameMapping, check_shapes, name_mapping, stored_experts
from megatron_glmv.checkpoint.hf.prediction import take_prediction
from megatron_glmv.checkpoint.hf.rows import CONFIG, HfRows
from megatron_glmv.checkpoint.hf.safetensors import Stored, read_bytes, read_directory, read_json
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import ModelConfig, MTPConfig, TextConfig

Json = dict[str, Any]
NAMES = {AIR: "glm45v", GLM4: "glm41v"}
"""The model that a text model becomes the decoder of."""


@dataclass(frozen=True)
class StartOptions:
    text: Path
    vision: Path
    rope_theta: float | None = None
    """Rotary base. None: the text model's own. Its weights were trained with it; another one changes every attention
    score at once. (GLM-4.5V has 1e4 and the released Air 1e6, so it started from an Air before its long-context
    training, which is not released.)"""
    merger_ffn: int | None = None
    """Width of the merger's SwiGLU. None: that of the decoder's dense layers, as in both released models."""
    patch_init: str = "average"
    """average or first (aimv2.inflate). Both leave images as they were; the average also sees every frame of a video
    from the first step on."""
    seed: int = 1234
    """Of fresh weights."""


@dataclass(frozen=True)
class StartRows:
    """All tensors of ours (rows.Rows)."""

    path: Path
    model: ModelConfig
    mapping: NameMapping
    text: HfRows
    encoder: HfRows
    options: StartOptions

    @property
    def stored(self) -> dict[str, Stored]:
        """Of both sources."""
        return {**self.text.stored, **{f"vision: {name}": tensor for name, tensor in self.encoder.stored.items()}}

    def dtype(self, name: str) -> torch.dtype:
        """As it is stored; fp32 where it is fresh."""
        if name.startswith("language."):
            return self.text.dtype(name)
        if name == KERNEL:
            return self.encoder.stored[kernel_name(self.encoder.mapping)].dtype
        return self.encoder.dtype(name) if name in self.encoder.mapping.entry else torch.float32

    def read(self, name: str, start: int, out: torch.Tensor) -> None:
        if name.startswith("language."):
            self.text.read(name, start, out)
        elif name == KERNEL:
            self._kernel(start, out)
        elif name in self.encoder.mapping.entry:
            self.encoder.read(name, start, out)
        else:
            fresh(self.options.seed, name, start, self.model.text.init_std, out)

    def _kernel(self, start: int, out: torch.Tensor) -> None:
        vision = self.model.vision
        stored = self.encoder.stored[kernel_name(self.encoder.mapping)]
        kernel = torch.empty(len(out), 3, vision.patch, vision.patch, dtype=stored.dtype)
        read_bytes(stored.file, stored.start + start * kernel[0].numel() * stored.dtype.itemsize, kernel)
        out.copy_(inflate(kernel, vision.temporal_patch, self.options.patch_init).flatten(1))

    @property
    def left_out(self) -> tuple[str, ...]:
        return self.text.left_out

    @property
    def fresh(self) -> list[str]:
        """Tensors that neither source has."""
        made = {KERNEL, *self.encoder.mapping.entry}
        return [name for name in self.mapping.entry if name.startswith("vision.") and name not in made]


def open_start(options: StartOptions, mtp: bool = False) -> StartRows:
    """Both sources, read and held against the model that they make, with the prediction layer if `mtp`. Raises
    ConfigError, ReadError, MismatchError."""
    check_inflation(options.patch_init)
    config = read_json(options.text / CONFIG)
    text = _text(config, options)
    vision = aimv2_config(read_json(options.vision / CONFIG), options.merger_ffn or text.ffn)
    taken = take_prediction(options.text, read_directory(options.text), config, "model.", mtp)
    stored, layers = taken.stored, taken.layers
    model = ModelConfig(name=NAMES[config["model_type"]], text=text, vision=vision, mtp=MTPConfig(layers=layers))
    mapping = name_mapping(model, stored_experts(stored), text_only=True)
    check_shapes(mapping.theirs, {name: tensor.shape for name, tensor in stored.items()}, str(options.text))
    images = {n: t for n, t in read_directory(options.vision).items() if not n.startswith("head.")}  # pools, unused
    encoder = aimv2_mapping(vision, set(images))
    check_shapes(encoder.theirs, {name: tensor.shape for name, tensor in images.items()}, str(options.vision))
    return StartRows(
        options.text,
        model,
        name_mapping(model),
        HfRows(options.text, model, mapping, stored, taken.left_out),
        HfRows(options.vision, model, encoder, images),
        options,
    )


def _text(config: Json, options: StartOptions) -> TextConfig:
    kind = config.get("model_type")
    if kind not in NAMES:
        raise ConfigError("--text", kind, "is not a text model that GLM starts from", " or ".join(NAMES))
    check_fixed({"text_config": config})
    if "mrope_section" not in rope_of(config):
        # A quarter of the frequencies for time, the rest for height and width alike: 8, 12, 12 in the released models.
        # Text has the same position on all three axes, so that its angles stay what they were.
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        count = int(head * float(rope_of(config).get("partial_rotary_factor", 0.5))) // 2
        time = count // 4
        height = (count - time) // 2
        scaling = {**(config.get("rope_scaling") or {}), "mrope_section": [time, height, count - time - height]}
        config = {**config, "rope_scaling": scaling}
    text = text_from_hf(config, moe=kind == AIR)
    return replace(text, rope_theta=options.rope_theta) if options.rope_theta else text


def fresh(seed: int, name: str, start: int, std: float, out: torch.Tensor) -> None:
    """Fills rows from `start` of a tensor that no source has."""
    if name.endswith("bias"):
        out.zero_()
    elif "norm" in name:
        out.fill_(1.0)
    else:
        for i, row in enumerate(out):
            digest = hashlib.sha256(f"{seed}:{name}:{start + i}".encode()).digest()
            row.normal_(0.0, std, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))

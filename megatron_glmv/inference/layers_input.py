"""What `verify --logits` computes with where nothing is given: a picture among random tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from megatron_glmv.checkpoint.hf.config import model_to_hf
from megatron_glmv.checkpoint.hf.rows import CONFIG
from megatron_glmv.checkpoint.hf.safetensors import read_json
from megatron_glmv.config.schema import ModelConfig

GRID = (8, 12)
"""Patches of the picture: not square, so that rows are not taken for columns."""
TEXT = 40
"""Tokens around it."""


def make_input(model: ModelConfig, directory: Path, out: Path) -> Path:
    """Writes tensors as transformers' processor returns them; the ids that stand for a picture are config.json's."""
    g = torch.Generator().manual_seed(0)
    tokens = model_to_hf(model, read_json(directory / CONFIG))
    marks = {name: tokens[f"image_{name}token_id"] for name in ("start_", "", "end_")}
    height, width = GRID[0] // 2 * model.vision.merge, GRID[1] // 2 * model.vision.merge
    count = height * width // model.vision.merge**2
    reserved = {value for name, value in tokens.items() if name.endswith("token_id") and isinstance(value, int)}
    words = [int(i) for i in torch.randint(model.text.vocab, (4 * TEXT,), generator=g) if int(i) not in reserved][:TEXT]
    half = len(words) // 2
    ids = [*words[:half], marks["start_"], *[marks[""]] * count, marks["end_"], *words[half:]]
    kinds = [0] * (half + 1) + [1] * count + [0] * (len(words) - half + 1)
    made = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "mm_token_type_ids": torch.tensor([kinds]),
        "pixel_values": torch.randn(height * width, model.vision.patch_values, generator=g),
        "image_grid_thw": torch.tensor([[1, height, width]]),
    }
    save_file(made, out)
    return out

"""AIMv2 (arXiv 2411.14402), from which GLM's encoder started (arXiv 2507.01006, section 2): its names, as ours.

Blocks, norms and the grid of positions are those of GLM's encoder; what stands behind the last norm is not in it. The
kernel of the patches has no time axis; how it gets one is `inflate`. Two spellings: transformers' and Apple's own.

Shapes: C width, F width of a SwiGLU, G positions, D head width, P pixels along a side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_glmv.checkpoint.errors import ReadError
from megatron_glmv.checkpoint.hf.mapping import Entry, NameMapping, Shaped, Span
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import VisionConfig

Json = dict[str, Any]
KERNEL = "vision.patch_embed.weight"
INFLATIONS = ("average", "first")
TRANSFORMERS = {
    "patch": "embeddings.patch_embed",
    "norm": "embeddings.rms_norm.weight",
    "positions": "embeddings.position_embedding.weight",
    "last": "rms_norm.weight",
    "block": "encoder.layers.",
    "norm1": "rms_norm1.weight",
    "norm2": "rms_norm2.weight",
    "proj": "attention.out_proj.weight",
    "gate": "ffn.gate_proj.weight",
    "up": "ffn.up_proj.weight",
    "down": "ffn.down_proj.weight",
}
APPLE = {
    "patch": "preprocessor.patchifier.proj",
    "norm": "preprocessor.patchifier.norm.weight",
    "positions": "preprocessor.pos_embed",
    "last": "trunk.post_trunk_norm.weight",
    "block": "trunk.blocks.",
    "norm1": "norm_1.weight",
    "norm2": "norm_2.weight",
    "proj": "attn.proj.weight",
    "gate": "mlp.fc1.weight",
    "up": "mlp.fc3.weight",
    "down": "mlp.fc2.weight",
}


def aimv2_config(config: Json, merger_ffn: int) -> VisionConfig:
    """GLM's encoder with these sizes. Raises ConfigError that names the field."""
    if config.get("model_type") not in ("aimv2", "aimv2_vision_model"):
        raise ConfigError("--vision", config.get("model_type"), "is not AIMv2's vision model", "aimv2_vision_model")
    for name, value in {"is_native": False, "qkv_bias": False, "mlp_bias": False, "use_bias": False}.items():
        if config.get(name, value) != value:
            raise ConfigError(f"--vision: {name}", config[name], f"GLM's encoder needs {value}")
    try:
        patch = int(config["patch_size"])
        return VisionConfig(
            depth=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=int(config["num_attention_heads"]),
            ffn=int(config["intermediate_size"]),
            merger_ffn=merger_ffn,
            patch=patch,
            position_grid=int(config["image_size"]) // patch,
            norm_eps=float(config.get("rms_norm_eps", 1e-5)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ReadError(f"--vision: config.json has no usable {error}") from None


def aimv2_mapping(vision: VisionConfig, names: set[str]) -> NameMapping:
    """Our encoder's tensors, as far as they are made of whole rows of AIMv2's; `names` tells the spelling. The kernel
    is among theirs only."""
    spelling = APPLE if APPLE["positions"] in names else TRANSFORMERS
    table = _Table(vision, spelling)
    return NameMapping(tuple(table.entries), table.theirs)


def kernel_name(mapping: NameMapping) -> str:
    return next(f"{s['patch']}.weight" for s in (TRANSFORMERS, APPLE) if f"{s['patch']}.weight" in mapping.theirs)


def inflate(kernel: torch.Tensor, frames: int, how: str) -> torch.Tensor:
    """[n, 3, P, P] -> [n, 3, frames, P, P]. average: every frame gets kernel / frames, so that an image, which is
    repeated to fill the frames, gives what it gave. first: the first frame gets all, the others nothing, with the same
    result for images; the rest of a video's frames is not seen before training teaches it."""
    if how == "average":
        return (kernel / frames)[:, :, None].repeat(1, 1, frames, 1, 1)
    made = torch.zeros(*kernel.shape[:2], frames, *kernel.shape[2:], dtype=kernel.dtype)
    made[:, :, 0] = kernel
    return made


class _Table:
    def __init__(self, vision: VisionConfig, spelling: dict[str, str]) -> None:
        self.entries: list[Entry] = []
        self.theirs: dict[str, Shaped] = {}
        width, ffn, head = vision.hidden, vision.ffn, vision.head_dim
        kernel = f"{spelling['patch']}.weight"
        self.theirs[kernel] = Shaped(kernel, (width, 3, vision.patch, vision.patch))
        self._rows("patch_embed.bias", (width,), [(f"{spelling['patch']}.bias", (width,))])
        self._rows("post_conv_layernorm.weight", (width,), [(spelling["norm"], (width,))])
        grid = (vision.position_grid**2, width)
        stored = (1, *grid) if spelling is APPLE else grid
        self._rows("position_embedding.weight", grid, [(spelling["positions"], stored)])
        for n in range(vision.depth):
            ours, theirs = f"blocks.layers.{n}.", f"{spelling['block']}{n}."
            self._rows(
                f"{ours}self_attention.linear_qkv.layer_norm_weight", (width,), [(theirs + spelling["norm1"], (width,))]
            )
            self._heads(f"{ours}self_attention.linear_qkv.weight", theirs, width, head, spelling is APPLE)
            square = (width, width)
            self._rows(f"{ours}self_attention.linear_proj.weight", square, [(theirs + spelling["proj"], square)])
            self._rows(f"{ours}mlp.linear_fc1.layer_norm_weight", (width,), [(theirs + spelling["norm2"], (width,))])
            halves = [(theirs + spelling[half], (ffn, width)) for half in ("gate", "up")]
            self._rows(f"{ours}mlp.linear_fc1.weight", (2 * ffn, width), halves)
            self._rows(f"{ours}mlp.linear_fc2.weight", (width, ffn), [(theirs + spelling["down"], (width, ffn))])
        self._rows("blocks.final_layernorm.weight", (width,), [(spelling["last"], (width,))])

    def _rows(self, ours: str, shape: tuple[int, ...], theirs: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Tensors of theirs one behind the other."""
        width, at, spans = 1 if len(shape) == 1 else shape[-1], 0, []
        for name, stored in theirs:
            self.theirs[name] = Shaped(name, stored)
            rows = self.theirs[name].numel // width
            spans.append(Span(at, name, 0, rows))
            at += rows
        self.entries.append(Entry(Shaped(f"vision.{ours}", shape), tuple(spans), width))

    def _heads(self, ours: str, theirs: str, width: int, head: int, together: bool) -> None:
        """Ours has query, key and value head by head; theirs apart, or one behind the other in one tensor."""
        apart = [f"{theirs}attention.{part}_proj.weight" for part in "qkv"]
        names = [f"{theirs}attn.qkv.weight"] * 3 if together else apart
        for name in names:
            self.theirs[name] = Shaped(name, (3 * width if together else width, width))
        spans = [
            Span((3 * h + part) * head, names[part], h * head + (part * width if together else 0), head)
            for h in range(width // head)
            for part in range(3)
        ]
        self.entries.append(Entry(Shaped(f"vision.{ours}", (3 * width, width)), tuple(spans), width))


def check_inflation(how: str) -> None:
    if how not in INFLATIONS:
        raise ConfigError("--patch-init", how, f"can be {' or '.join(INFLATIONS)}")

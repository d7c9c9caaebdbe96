"""Tiny models as transformers configures them, and inputs as its processor would make them.

Shapes: B rows, S tokens of the longest row, N patches, V values of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

PATCH, MERGE, TEMPORAL = 4, 2, 2
PATCH_VALUES = 3 * TEMPORAL * PATCH * PATCH
VOCAB = 128
IMAGE, BEGIN_IMAGE, END_IMAGE, BEGIN_VIDEO, END_VIDEO = 120, 121, 122, 123, 124

VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "patch_size": PATCH,
    "temporal_patch_size": TEMPORAL,
    "spatial_merge_size": MERGE,
    "image_size": 5 * PATCH,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-5,
}
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
MOE: dict[str, Any] = {
    "head_dim": 32,  # 4 x 32 is twice hidden, as GLM-4.5V's heads are wider than the model
    "attention_bias": True,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}


def rope(sections: list[int], theta: float = 10000.0) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5, "mrope_section": sections}


def config(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "text_config": text,
        "vision_config": {**VISION, **vision, "out_hidden_size": text["hidden_size"]},
        "image_token_id": IMAGE,
        "image_start_token_id": BEGIN_IMAGE,
        "image_end_token_id": END_IMAGE,
        "video_start_token_id": BEGIN_VIDEO,
        "video_end_token_id": END_VIDEO,
        "tie_word_embeddings": False,
    }


SMALL = {"hidden_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
NARROW = {"hidden_size": 48, "num_heads": 3, "depth": 1, "image_size": 7 * PATCH, "intermediate_size": 40}
MODELS: dict[str, dict[str, Any]] = {
    "glm45v": {
        "kind": "Glm4vMoe",
        "seed": 6,
        "attention": "eager",
        "config": config({**TEXT, **MOE, "rope_parameters": rope([2, 3, 3])}, {}),
    },
    "glm45v_other": {  # other sizes and seed, another theta, scaled experts, two dense layers
        "kind": "Glm4vMoe",
        "seed": 9,
        "attention": "sdpa",
        "config": config(
            {
                **TEXT,
                **SMALL,
                **MOE,
                "head_dim": 24,
                "n_routed_experts": 5,
                "num_experts_per_tok": 2,
                "first_k_dense_replace": 2,
                "routed_scaling_factor": 1.75,
                "rope_parameters": rope([1, 2, 3], 500.0),
            },
            NARROW,
        ),
    },
    "glm41v": {
        "kind": "Glm4v",
        "seed": 3,
        "attention": "eager",
        "config": config({**TEXT, "rope_parameters": rope([1, 1, 2])}, {}),
    },
    "glm41v_other": {
        "kind": "Glm4v",
        "seed": 4,
        "attention": "sdpa",
        "config": config({**TEXT, **SMALL, "rope_parameters": rope([1, 2, 3], 500.0), "rms_norm_eps": 1e-4}, NARROW),
    },
}
for _model in MODELS.values():  # transformers reads the head width of the vision rotary from these
    _model["config"]["vision_config"]["rope_parameters"] = {"rope_type": "axial", "rope_theta": 10000.0}


@dataclass(frozen=True)
class Row:
    """What a row shows, in order: ("image", (1, h, w)), ("video", (t, h, w)) or ("text", tokens); grids in patches."""

    parts: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Case:
    rows: tuple[Row, ...]
    padding: str = "none"
    """Side: left or right; none for rows of one length."""
    seed: int = 0


def _case(*rows: tuple[tuple[str, Any], ...], padding: str = "none", seed: int = 0) -> Case:
    return Case(tuple(Row(parts) for parts in rows), padding, seed)


CASES = {
    "text": _case((("text", 37),), seed=10),
    "images": _case(
        (("text", 3), ("image", (1, 4, 6)), ("text", 2), ("image", (1, 2, 398)), ("image", (1, 36, 2)), ("text", 9)),
        seed=11,
    ),
    "videos": _case((("text", 4), ("video", (3, 4, 4)), ("text", 5), ("video", (2, 2, 6)), ("text", 7)), seed=12),
    "mixture": _case(
        (("text", 3), ("image", (1, 6, 4)), ("video", (2, 4, 6)), ("text", 4), ("image", (1, 2, 2)), ("text", 6)),
        (("text", 21),),
        (("text", 1), ("video", (2, 2, 20)), ("text", 3), ("image", (1, 8, 2)), ("image", (1, 4, 4)), ("text", 5)),
        padding="left",
        seed=13,
    ),
    "right": _case(
        (("text", 5), ("image", (1, 4, 4)), ("text", 12)), (("text", 2), ("image", (1, 2, 8)), ("text", 3)),
        padding="right",
        seed=14,
    ),
}  # fmt: skip


def inputs(case: Case) -> dict[str, torch.Tensor]:
    """What transformers' Glm4v processor gives: input_ids, attention_mask, mm_token_type_ids [B, S], and for each kind
    that occurs pixel_values(_videos) [N, V] and image/video_grid_thw."""
    g = torch.Generator().manual_seed(case.seed)
    rows: list[tuple[list[int], list[int]]] = []
    grids: dict[str, list[tuple[int, int, int]]] = {"image": [], "video": []}
    for row in case.rows:
        ids, types = [], []
        for kind, what in row.parts:
            said, marks = _text(what, g) if kind == "text" else _medium(kind, what)
            ids += said
            types += marks
            if kind != "text":
                grids[kind].append(what)
        rows.append((ids, types))
    width = max(len(ids) for ids, _ in rows)
    made = {name: torch.zeros(len(rows), width, dtype=torch.int64) for name in ("attention_mask", "mm_token_type_ids")}
    made["input_ids"] = torch.full((len(rows), width), 7)
    for i, (ids, types) in enumerate(rows):
        span = slice(width - len(ids), width) if case.padding == "left" else slice(0, len(ids))
        made["input_ids"][i, span] = torch.tensor(ids)
        made["mm_token_type_ids"][i, span] = torch.tensor(types)
        made["attention_mask"][i, span] = 1
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            count = sum(t * h * w for t, h, w in grids[kind])
            made[pixels] = torch.randn(count, PATCH_VALUES, generator=g)
            made[f"{kind}_grid_thw"] = torch.tensor(grids[kind])
    return made


def _text(count: int, g: torch.Generator) -> tuple[list[int], list[int]]:
    ids = torch.randint(0, 110, (count,), generator=g).tolist()
    ids[count // 2] = 0  # a token like any other
    return ids, [0] * count


def _medium(kind: str, grid: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """Expanded as the processor does: each picture between its marks; a video's pictures with their second behind."""
    t, h, w = grid
    count = h * w // (MERGE * MERGE)
    mark = 1 if kind == "image" else 2
    ids, types = [], []
    for second in range(t):
        ids += [BEGIN_IMAGE, *[IMAGE] * count, END_IMAGE]
        types += [0, *[mark] * count, 0]
        if kind == "video":
            ids.append(48 + second)
            types.append(0)
    return ([BEGIN_VIDEO, *ids, END_VIDEO], [0, *types, 0]) if kind == "video" else (ids, types)

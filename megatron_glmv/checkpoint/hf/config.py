"""transformers' config.json of Glm4v and Glm4vMoe as our ModelConfig, and back.

The older spelling (rope_theta, rope_scaling, partial_rotary_factor beside each other) is what the released checkpoints
have and what every version reads; transformers 5 writes all of it into rope_parameters. Both are read.
"""

from __future__ import annotations

import copy
from typing import Any

from megatron_glmv.checkpoint.hf.prediction import CLAIM
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import ModelConfig, MoEConfig, TextConfig, VisionConfig

Json = dict[str, Any]

GLM45V, GLM41V, AIR, GLM4 = "glm4v_moe", "glm4v", "glm4_moe", "glm4"
"""model_type of GLM-4.5V, GLM-4.1V, and of the text models GLM-4.5-Air and GLM-4-9B-0414 that they started from."""
ARCHITECTURES = {GLM45V: "Glm4vMoeForConditionalGeneration", GLM41V: "Glm4vForConditionalGeneration"}
OURS = {GLM45V: "glm45v", GLM41V: "glm41v"}

FIXED: tuple[tuple[str, str, Any], ...] = (
    ("text_config", "hidden_act", "silu"),
    ("text_config", "attention_bias", True),
    ("text_config", "use_qk_norm", False),
    ("text_config", "n_group", 1),
    ("text_config", "topk_group", 1),
    ("text_config", "norm_topk_prob", True),
    ("text_config", "tie_word_embeddings", False),
    ("text_config", "quantization_config", None),
    ("vision_config", "hidden_act", "silu"),
    ("vision_config", "attention_bias", False),
    ("vision_config", "in_channels", 3),
    ("", "tie_word_embeddings", False),
    ("", "quantization_config", None),
)
"""What the code takes for granted; where a config has the field, it has to have this value."""

TOKENS: dict[str, Json] = {
    GLM45V: {
        "image_start_token_id": 151339,
        "image_end_token_id": 151340,
        "image_token_id": 151363,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "video_token_id": 151364,
    },
    GLM41V: {
        "image_start_token_id": 151339,
        "image_end_token_id": 151340,
        "image_token_id": 151343,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "video_token_id": 151344,
    },
}
"""Ids in the released models; an export takes them from its tokenizer where there is one."""


def model_from_hf(config: Json) -> ModelConfig:
    """The model that a config.json describes. Raises ConfigError that names the field."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError(
            "model_type", kind, "is not a model that can be imported", f"it can be {' or '.join(ARCHITECTURES)}"
        )
    text, vision = _section(config, "text_config"), _section(config, "vision_config")
    check_fixed(config)
    made_text = text_from_hf(text, moe=kind == GLM45V)
    out = _size(vision, "vision_config.out_hidden_size")
    if out != made_text.hidden:
        raise ConfigError(
            "vision_config.out_hidden_size",
            out,
            f"the decoder's hidden_size is {made_text.hidden}; they have to be equal",
        )
    return ModelConfig(name=OURS[kind], text=made_text, vision=_vision(vision, out))


def text_from_hf(text: Json, moe: bool) -> TextConfig:
    """The decoder of a `text_config` (or of a text model's whole config)."""
    hidden, heads = (_size(text, f"text_config.{name}") for name in ("hidden_size", "num_attention_heads"))
    head_dim = text.get("head_dim") or hidden // heads
    rope = rope_of(text)
    default = (8, 12, 12) if head_dim == 128 else None
    section = rope.get("mrope_section", default)
    if section is None or len(section) != 3:
        raise ConfigError("text_config.rope_scaling.mrope_section", section, "has to be three numbers")
    if rope.get("rope_type", rope.get("type", "default")) not in ("default", "mrope"):
        raise ConfigError("text_config.rope_scaling.rope_type", rope["rope_type"], "only default is known")
    return TextConfig(
        layers=_size(text, "text_config.num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        ffn=_size(text, "text_config.intermediate_size"),
        vocab=_size(text, "text_config.vocab_size"),
        mrope_section=(section[0], section[1], section[2]),
        rotary_percent=float(rope.get("partial_rotary_factor", 0.5)),
        rotary_interleaved=not moe,
        rope_theta=float(rope.get("rope_theta", 10000.0)),
        sandwich_norm=not moe,
        max_position=int(text.get("max_position_embeddings", 65536)),
        norm_eps=float(text.get("rms_norm_eps", 1e-5)),
        init_std=float(text.get("initializer_range", 0.02)),
        moe=_moe(text) if moe else None,
    )


def _moe(text: Json) -> MoEConfig:
    ffn = _size(text, "text_config.moe_intermediate_size")
    return MoEConfig(
        experts=_size(text, "text_config.n_routed_experts"),
        topk=_size(text, "text_config.num_experts_per_tok"),
        ffn=ffn,
        shared_ffn=ffn * int(text.get("n_shared_experts", 1)),
        first_dense=int(text.get("first_k_dense_replace", 1)),
        scaling=float(text.get("routed_scaling_factor", 1.0)),
    )


def _vision(vision: Json, out: int) -> VisionConfig:
    patch = _size(vision, "vision_config.patch_size")
    return VisionConfig(
        depth=_size(vision, "vision_config.depth"),
        hidden=_size(vision, "vision_config.hidden_size"),
        heads=_size(vision, "vision_config.num_heads"),
        ffn=out,  # transformers makes a block's MLP as wide as the decoder, whatever intermediate_size says
        merger_ffn=_size(vision, "vision_config.intermediate_size"),
        patch=patch,
        temporal_patch=int(vision.get("temporal_patch_size", 2)),
        merge=int(vision.get("spatial_merge_size", 2)),
        position_grid=_size(vision, "vision_config.image_size") // patch,
        rope_theta=float(rope_of(vision).get("rope_theta", 10000.0)),
        norm_eps=float(vision.get("rms_norm_eps", 1e-5)),
    )


def model_to_hf(model: ModelConfig, base: Json | None = None, tokens: Json | None = None) -> Json:
    """config.json for `model`. `base`: the config it once came from, whose other fields (and spelling) stay; `tokens`:
    ids of the media tokens. Raises ConfigError if transformers has no such model."""
    kind = model_type(model)
    text, vision, moe = model.text, model.vision, model.text.moe
    made: Json = copy.deepcopy(base) if base and base.get("model_type") == kind else {}
    made |= {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "tie_word_embeddings": False}
    for name, token in {**TOKENS[kind], **(tokens or {})}.items():
        if tokens and name in tokens:
            made[name] = token
        else:
            made.setdefault(name, token)
    made_text: Json = made.setdefault("text_config", {})
    made_text |= {
        "model_type": f"{kind}_text",
        "num_hidden_layers": text.layers,
        "hidden_size": text.hidden,
        "num_attention_heads": text.heads,
        "num_key_value_heads": text.kv_heads,
        "head_dim": text.head_dim,
        "intermediate_size": text.ffn,
        "vocab_size": text.vocab,
        "max_position_embeddings": text.max_position,
        "rms_norm_eps": text.norm_eps,
        "initializer_range": text.init_std,
        "hidden_act": "silu",
        "attention_bias": True,
    }
    _put_rope(
        made_text,
        {
            "rope_theta": text.rope_theta,
            "partial_rotary_factor": text.rotary_percent,
            "mrope_section": list(text.mrope_section),
        },
    )
    if moe is not None:
        made_text |= {
            "n_routed_experts": moe.experts,
            "num_experts_per_tok": moe.topk,
            "moe_intermediate_size": moe.ffn,
            "n_shared_experts": moe.shared_ffn // moe.ffn,
            "first_k_dense_replace": moe.first_dense,
            "routed_scaling_factor": moe.scaling,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "use_qk_norm": False,
        }
    if model.mtp.layers or made_text.get(CLAIM):
        made_text[CLAIM] = model.mtp.layers
    made_vision: Json = made.setdefault("vision_config", {})
    made_vision |= {
        "model_type": made_vision.get("model_type", f"{kind}_vision"),
        "depth": vision.depth,
        "hidden_size": vision.hidden,
        "num_heads": vision.heads,
        "out_hidden_size": text.hidden,
        "intermediate_size": vision.merger_ffn,
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal_patch,
        "spatial_merge_size": vision.merge,
        "image_size": vision.position_grid * vision.patch,
        "rms_norm_eps": vision.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "in_channels": 3,
    }
    if vision.rope_theta != rope_of(made_vision).get("rope_theta", 10000.0):
        made_vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": vision.rope_theta}
    return made


def model_type(model: ModelConfig) -> str:
    """transformers' model_type. Raises ConfigError for a model that it has no class for."""
    text, vision = model.text, model.vision
    kind = GLM45V if text.moe is not None else GLM41V
    other = "GLM-4.5V (with experts)" if text.moe is not None else "GLM-4.1V (without experts)"
    for option, value in (("sandwich_norm", text.sandwich_norm), ("rotary_interleaved", text.rotary_interleaved)):
        if value != (text.moe is None):
            raise ConfigError(f"model.text.{option}", value, f"transformers' {other} has it the other way round")
    if vision.ffn != text.hidden:
        raise ConfigError(
            "model.vision.ffn",
            vision.ffn,
            f"transformers makes the encoder's MLP as wide as the decoder ({text.hidden}) and cannot load this model",
        )
    if text.moe is None and text.heads * text.head_dim != text.hidden:
        raise ConfigError(
            "model.text.head_dim", text.head_dim, f"transformers' {other} divides hidden={text.hidden} by its heads"
        )
    if text.moe is not None and text.moe.shared_ffn % text.moe.ffn:
        raise ConfigError(
            "model.text.moe.shared_ffn", text.moe.shared_ffn, f"has to be a multiple of moe.ffn={text.moe.ffn}"
        )
    return kind


def rope_of(section: Json) -> Json:
    """The rotary fields of a config section, in one place, whichever way they are spelt."""
    scattered = {name: section[name] for name in ("rope_theta", "partial_rotary_factor") if name in section}
    return {**scattered, **(section.get("rope_scaling") or {}), **(section.get("rope_parameters") or {})}


def _put_rope(section: Json, rope: Json) -> None:
    """Sets rotary fields where the section has them; in a new one, the way every version reads."""
    if section.get("rope_parameters"):
        section["rope_parameters"] = {"rope_type": "default", **section["rope_parameters"], **rope}
        return
    section |= {"rope_theta": rope["rope_theta"], "partial_rotary_factor": rope["partial_rotary_factor"]}
    section["rope_scaling"] = {
        "rope_type": "default",
        **(section.get("rope_scaling") or {}),
        "mrope_section": rope["mrope_section"],
    }


def check_fixed(config: Json) -> None:
    """Raises ConfigError for a model that differs in what is not an option here."""
    for section, name, value in FIXED:
        inner = config.get(section) or {} if section else config
        if inner.get(name, value) != value:
            option = f"{section}.{name}".lstrip(".")
            raise ConfigError(option, inner[name], f"this model is not supported: it has to be {value}")


def _section(config: Json, name: str) -> Json:
    section = config.get(name)
    if not isinstance(section, dict):
        raise ConfigError(name, section, "is missing in config.json")
    return section


def _size(section: Json, option: str) -> int:
    """A field that has to be there: a class default of transformers is not the released model's value."""
    value = section.get(option.rpartition(".")[2])
    if type(value) is not int or value < 1:
        raise ConfigError(option, value, "has to be a positive number in config.json")
    return value

"""The table of names against the released models, against a model that is built, and against written-out formulas.

Counts and sums of elements are those of the released GLM-4.5V (facts of its safetensors: 18,106 tensors,
107,710,933,120 elements) and of transformers' GLM-4.1V (704 keys, 10,292,777,472 parameters). The formulas of the
transforms are written here a second time, with reshapes instead of row ranges. Not covered: that transformers computes
the same from these tensors (tests/convert/test_convert.py, tests/parity).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.hf.config import model_from_hf, model_to_hf
from megatron_glmv.checkpoint.hf.mapping import EXPERTS, Experts, NameMapping, name_mapping, stored_experts
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import ModelConfig

WIDE = replace(tiny.MODEL, text=replace(tiny.TEXT, head_dim=32, heads=6, kv_heads=2, hidden=48))


def released(name: str) -> ModelConfig:
    return compose([f"experiment={name}_pretrain"]).model


def elements(mapping: NameMapping) -> tuple[int, int]:
    return sum(t.numel for t in mapping.theirs.values()), sum(t.numel for t in mapping.ours.values())


def test_covers_glm45v_to_the_element() -> None:
    mapping = name_mapping(released("glm45v"))
    assert len(mapping.theirs) == 18_106
    assert elements(mapping) == (107_710_933_120, 107_710_933_120)
    exact = [t for t in mapping.theirs.values() if t.exact]
    assert (len(exact), sum(t.numel for t in exact)) == (45, 5_760)
    fused = name_mapping(released("glm45v"), "fused")
    assert (len(fused.theirs), elements(fused)) == (916, elements(mapping))
    assert fused.theirs["model.language_model.layers.45.mlp.experts.gate_up_proj"].shape == (128, 2816, 4096)


def test_covers_glm41v_to_the_element() -> None:
    mapping = name_mapping(released("glm41v"))
    assert len(mapping.theirs) == 704
    assert elements(mapping) == (10_292_777_472, 10_292_777_472)
    assert mapping.theirs["model.language_model.layers.39.mlp.gate_up_proj.weight"].shape == (27392, 4096)


@pytest.mark.parametrize("model", [tiny.MODEL, tiny.DENSE, WIDE], ids=["glm45v", "glm41v", "wide"])
def test_our_names_and_shapes_are_those_of_a_built_model(model: ModelConfig) -> None:
    from megatron_glmv.stages.session import single_process

    config = tiny.config(model)
    with single_process(config) as session:
        from megatron_glmv.checkpoint.sharded import model_state
        from megatron_glmv.model.build import build_model, sharding_metadata
        from megatron_glmv.model.initialise import shards

        (chunk,) = build_model(config, session.groups, backend="torch", device=session.device)
        state = model_state(chunk, sharding_metadata(session.groups))
        built = {shard.key: tuple(shard.global_shape) for shard in shards(state)}
    ours = name_mapping(model).ours
    assert {name: tensor.shape for name, tensor in ours.items()} == built
    assert {name for name, tensor in ours.items() if tensor.exact} == {n for n in built if n.endswith("expert_bias")}


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("model", [tiny.MODEL, tiny.DENSE, WIDE], ids=["glm45v", "glm41v", "wide"])
def test_every_row_goes_to_one_place_and_back(model: ModelConfig, experts: Experts) -> None:
    """Elements numbered through: what comes back is what went, and nothing is there twice."""
    mapping, at, theirs = name_mapping(model, experts), 0, {}
    for name, tensor in mapping.theirs.items():
        theirs[name] = torch.arange(at, at + tensor.numel, dtype=torch.int64).view(tensor.shape)
        at += tensor.numel
    ours = mapping.to_ours(theirs)
    seen = torch.cat([tensor.flatten() for tensor in ours.values()])
    assert torch.equal(seen.sort().values, torch.arange(at))
    back = mapping.to_theirs(ours)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in theirs)
    assert stored_experts(theirs) == (experts if model.text.moe else "single")


def test_transforms_are_the_formulas() -> None:
    """Each transform as a reshape. A groups of query heads g, r queries in each, d head width; E experts."""
    model, g = WIDE, torch.Generator().manual_seed(0)
    text, vision, mapping = model.text, model.vision, name_mapping(WIDE)
    theirs = {name: torch.randn(t.shape, generator=g) for name, t in mapping.theirs.items()}
    ours = mapping.to_ours(theirs)
    groups, d = text.kv_heads, text.head_dim
    for kind in ("weight", "bias"):
        parts = [theirs[f"model.language_model.layers.2.self_attn.{x}_proj.{kind}"] for x in "qkv"]
        rows = [part.reshape(groups, -1, d, *part.shape[1:]) for part in parts]
        expected = torch.cat(rows, dim=1).reshape(-1, *parts[0].shape[1:])
        assert torch.equal(ours[f"language.decoder.layers.2.self_attention.linear_qkv.{kind}"], expected)
    qkv = theirs["model.visual.blocks.1.attn.qkv.weight"].reshape(3, vision.heads, vision.head_dim, vision.hidden)
    expected = qkv.transpose(0, 1).reshape(-1, vision.hidden)
    assert torch.equal(ours["vision.blocks.layers.1.self_attention.linear_qkv.weight"], expected)
    prefix = "model.language_model.layers.3.mlp."
    each = [[theirs[f"{prefix}experts.{e}.{x}_proj.weight"] for e in range(4)] for x in ("gate", "up", "down")]
    fc1 = torch.cat([torch.stack(each[0]), torch.stack(each[1])], dim=1)
    assert torch.equal(ours["language.decoder.layers.3.mlp.experts.experts.linear_fc1.weight"], fc1)
    fc2 = torch.stack(each[2])
    assert torch.equal(ours["language.decoder.layers.3.mlp.experts.experts.linear_fc2.weight"], fc2)
    pairs = {
        "language.decoder.layers.0.mlp": "model.language_model.layers.0.mlp",
        "language.decoder.layers.1.mlp.shared_experts": "model.language_model.layers.1.mlp.shared_experts",
        "vision.blocks.layers.0.mlp": "model.visual.blocks.0.mlp",
        "vision.merger.mlp": "model.visual.merger",
    }
    for mine, other in pairs.items():
        gated = torch.cat([theirs[f"{other}.gate_proj.weight"], theirs[f"{other}.up_proj.weight"]])
        assert torch.equal(ours[f"{mine}.linear_fc1.weight"], gated)
        assert torch.equal(ours[f"{mine}.linear_fc2.weight"], theirs[f"{other}.down_proj.weight"])
    assert torch.equal(ours["vision.patch_embed.weight"], theirs["model.visual.patch_embed.proj.weight"])


def test_a_slice_of_rows_is_that_slice_of_the_whole() -> None:
    mapping = name_mapping(WIDE)
    theirs = {n: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for n, t in mapping.theirs.items()}
    for entry in mapping.entries:
        whole = mapping.tensor_of_ours(entry.ours.name, theirs).reshape(entry.rows, entry.width)
        low, high = entry.rows // 3, max(entry.rows // 3 + 1, entry.rows - 2)
        spans = list(entry.within(low, high - low))
        assert [s.start for s in spans] == [low + sum(s.rows for s in spans[:i]) for i in range(len(spans))]
        rows = [theirs[s.name].reshape(-1, entry.width)[s.offset : s.offset + s.rows] for s in spans]
        assert torch.equal(torch.cat(rows), whole[low:high])


def test_what_does_not_fit_is_listed() -> None:
    mapping = name_mapping(tiny.MODEL)
    theirs = {name: torch.zeros(t.shape) for name, t in mapping.theirs.items()}
    lost, bent = "model.visual.merger.proj.weight", "model.language_model.layers.1.mlp.experts.3.down_proj.weight"
    del theirs[lost]
    theirs[bent] = theirs[bent].T.contiguous()[:-1]
    theirs["model.language_model.layers.4.eh_proj.weight"] = torch.zeros(2)
    with pytest.raises(MismatchError) as caught:
        mapping.to_ours(theirs)
    message = str(caught.value)
    assert "3 tensors do not fit" in message
    assert f"{lost} (64, 64) is missing" in message
    assert "model.language_model.layers.4.eh_proj.weight is unknown" in message
    assert f"{bent} has shape (31, 64) instead of (64, 32)" in message


OFFICIAL: dict[str, Any] = {  # sizes and spelling of zai-org/GLM-4.5V
    "architectures": ["Glm4vMoeForConditionalGeneration"],
    "model_type": "glm4v_moe",
    "image_token_id": 151363,
    "text_config": {
        "model_type": "glm4v_moe_text",
        "attention_bias": True,
        "use_qk_norm": False,
        "hidden_act": "silu",
        "num_hidden_layers": 46,
        "hidden_size": 4096,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 10944,
        "vocab_size": 151552,
        "max_position_embeddings": 65536,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]},
    },
    "vision_config": {
        "model_type": "glm4v_moe",
        "depth": 24,
        "hidden_size": 1536,
        "num_heads": 12,
        "out_hidden_size": 4096,
        "intermediate_size": 10944,
        "image_size": 336,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": False,
    },
}


def test_the_released_config_is_our_model_and_back() -> None:
    assert model_from_hf(OFFICIAL) == released("glm45v")
    for model in (released("glm45v"), released("glm41v")):
        assert model_from_hf(model_to_hf(model)) == model
    other = replace(released("glm45v"), text=replace(released("glm45v").text, rope_theta=500000.0))
    kept = model_to_hf(other, OFFICIAL)
    assert kept["text_config"]["rope_theta"] == 500000.0 and kept["vision_config"]["model_type"] == "glm4v_moe"
    assert model_from_hf(kept) == other and OFFICIAL["text_config"]["rope_theta"] == 10000.0
    newer = dict(OFFICIAL["text_config"])
    for name in ("rope_theta", "partial_rotary_factor", "rope_scaling"):
        del newer[name]
    rope = {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5, "mrope_section": [8, 12, 12]}
    read = model_from_hf({**OFFICIAL, "text_config": {**newer, "rope_parameters": rope}})
    assert read.text.rope_theta == 2e4


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("text_config", "use_qk_norm", True),
        ("text_config", "attention_bias", False),
        ("text_config", "n_group", 4),
        ("text_config", "head_dim", None),
        ("vision_config", "out_hidden_size", 2048),
        ("vision_config", "attention_bias", True),
        ("", "tie_word_embeddings", True),
        ("", "quantization_config", {"quant_method": "fp8"}),
        ("", "model_type", "qwen2_vl"),
    ],
)
def test_another_model_is_refused_by_its_field(section: str, field: str, value: Any) -> None:
    changed = {**OFFICIAL, field: value} if not section else {**OFFICIAL, section: {**OFFICIAL[section], field: value}}
    if field == "head_dim":  # 4096 / 96 = 42, what transformers' class takes where the field is absent
        assert model_from_hf({**changed}).text.head_dim == 42
        return
    with pytest.raises(ConfigError, match=field):
        model_from_hf(changed)


def test_a_model_that_transformers_has_no_class_for_is_not_exported() -> None:
    for wrong, field in (
        (replace(tiny.MODEL, text=replace(tiny.TEXT, sandwich_norm=True)), "sandwich_norm"),
        (replace(tiny.MODEL, vision=replace(tiny.VISION, ffn=96)), "vision.ffn"),
        (replace(tiny.DENSE, text=replace(tiny.DENSE.text, head_dim=2 * tiny.DENSE.text.head_dim)), "head_dim"),
    ):
        with pytest.raises(ConfigError, match=field):
            model_to_hf(wrong)

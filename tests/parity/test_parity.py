"""Tiny GLM-4.5V and GLM-4.1V against transformers: positions, logits and the gradient of every parameter.

Derivation. Both sides compute one function in fp32 from the same numbers; they differ by the order of sums (one matrix
product for q, k and v together, images one by one or together, fused or plain attention). An activation of order one
carries a relative error of about 1e-6 after four layers, so logits agree to a few 1e-6 of max(1, |logit|), and the
gradient of a tensor to a few 1e-6 of its norm (measured: logits up to 1.2e-5, gradients up to 7e-6). The bounds are
2e-5 and 1e-4. What is compared is each tensor's norm, for single elements may be zero in exact arithmetic: a bias of
the keys adds q.R(j)b to the scores of query q, and on the part of a head that is not rotated R(j)b is the same for all
keys j, which softmax does not see. There both sides have rounding noise; a test of its own bounds that noise, and
that the rotated part is no noise. Parameters that a case does not reach (the encoder in text, experts that no token
chose) have to be exactly zero on both sides.

Routing is not continuous: where the scores of two experts tie within rounding, the sides may choose differently, and
nothing agrees. The reference measures how near any router came to that, and the seeds are such that it is 100
times farther than rounding.

Not covered: bf16, and values that real checkpoints have and these do not (activation outliers).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.cases import CASES, MODELS, inputs
from parity.compare import compare, score_and_compare
from parity.conftest import Reference
from safetensors.torch import load_file

MARGIN = 1e-4
"""Least gap between the last expert chosen and the first one not chosen. fp32 sigmoids differ by 1e-6 at most."""


def test_the_reference_cannot_import_what_it_is_to_check(reference: Reference) -> None:
    assert reference.report["refused"] == ["megatron_glmv", "megatron"]
    assert reference.report["loaded"] == []


@pytest.mark.parametrize("model", MODELS)
def test_every_number_of_the_reference_is_off_its_default(reference: Reference, model: str) -> None:
    report = reference.report["models"][model]
    assert sorted(report["moved"]) == report["state"]
    for name, tensor in load_file(reference.hf(model) / "model.safetensors").items():
        assert tensor.unique().numel() > 1 and not (tensor == 0).any() and not (tensor == 1).any(), name


@pytest.mark.parametrize("model", [name for name, spec in MODELS.items() if spec["kind"] == "Glm4vMoe"])
def test_no_router_is_near_a_tie(reference: Reference, model: str) -> None:
    margins = [case["margin"] for case in reference.report["models"][model]["cases"].values()]
    assert min(margins) > MARGIN


def test_cases_show_what_they_are_for() -> None:
    made = {name: inputs(case) for name, case in CASES.items()}
    assert "pixel_values" not in made["text"] and "pixel_values_videos" not in made["text"]
    grids = made["images"]["image_grid_thw"]
    assert len(grids) == 3 and (grids[:, 1:].amax(1) / grids[:, 1:].amin(1)).max() == 199  # 200 is the most allowed
    assert len(made["videos"]["video_grid_thw"]) == 2 and "pixel_values" not in made["videos"]
    assert {"pixel_values", "pixel_values_videos"} <= made["mixture"].keys()
    assert made["mixture"]["attention_mask"][:, -1].all() and not made["mixture"]["attention_mask"].all()
    assert made["right"]["attention_mask"][:, 0].all() and not made["right"]["attention_mask"].all()
    assert all((x["input_ids"][x["attention_mask"] == 1] == 0).any() for x in made.values())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", MODELS)
def test_logits_positions_and_gradients(reference: Reference, model: str, case: str, tmp_path: Path) -> None:
    score_and_compare(reference, model, case, tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_the_part_of_a_key_bias_that_softmax_does_not_see(reference: Reference, model: str) -> None:
    text = MODELS[model]["config"]["text_config"]
    width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    gradients = reference.gradients(model, "mixture")
    biases = {name: g.view(-1, width) for name, g in gradients.items() if name.endswith("k_proj.bias")}
    assert len(biases) == text["num_hidden_layers"]
    for name, bias in biases.items():
        seen, unseen = bias[:, : width // 2], bias[:, width // 2 :]
        assert unseen.norm() < 1e-5 * seen.norm(), name


def test_a_gradient_that_is_wrong_in_one_tensor_is_noticed(reference: Reference) -> None:
    right = reference.gradients("glm41v", "images")
    compare(right, right)
    for name in ("model.visual.patch_embed.proj.bias", "lm_head.weight"):
        wrong = {**right, name: right[name] * 1.001}
        with pytest.raises(AssertionError, match=name):
            compare(wrong, right)
    text = reference.gradients("glm41v", "text")
    name = "model.visual.downsample.bias"
    with pytest.raises(AssertionError, match=name):
        compare({**text, name: torch.full_like(text[name], 1e-12)}, text)
    with pytest.raises(AssertionError):
        compare({n: g for n, g in right.items() if n != name}, right)

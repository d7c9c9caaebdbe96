"""`glmv convert import --text --vision`: what pre-training starts from computes what its sources computed.

The decoder has to give the logits of the text model that it was (2e-5, fp32; text has one position on all three axes,
so M-RoPE is the text model's RoPE). The encoder has to give AIMv2's last hidden state for an image of the grid that it
was trained with: GLM adds rotary positions, which are switched off here, and interpolates the learned ones, which is
nothing on their own grid. Sources are written by transformers (starting.py). Not covered: released weights; which of
the options the authors took, which nobody has said.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from convert.conftest import reload, run_apart, tensors_of
from convert.test_convert import exported, files
from helpers import tiny
from parity.compare import LOGITS
from safetensors.torch import load_file, save_file

from megatron_glmv.checkpoint.errors import MismatchError
from megatron_glmv.checkpoint.hf.importing import ImportOptions, import_hf
from megatron_glmv.checkpoint.hf.rows import open_rows
from megatron_glmv.checkpoint.hf.start import StartOptions
from megatron_glmv.checkpoint.hf.verify import verify
from megatron_glmv.checkpoint.reader import open_checkpoint
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import from_dict
from megatron_glmv.inference.layers import _config
from megatron_glmv.inference.score import Task, main
from megatron_glmv.model.rope import VisionRotary
from megatron_glmv.model.vision import patch_coordinates
from megatron_glmv.stages.session import single_process

STARTING = Path(__file__).with_name("starting.py")
KERNEL = "vision.patch_embed.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = tmp_path_factory.mktemp("starting")
    run_apart(STARTING, job)
    return job


def started(sources: Path, out: Path, text: str = "air", vision: str = "aimv2", **options: Any) -> Path:
    start = StartOptions(sources / text, sources / vision, **options)
    import_hf(ImportOptions(start, out, without_tokenizer=True))
    return out


def patches(image: torch.Tensor, frames: int) -> torch.Tensor:
    """[3, 24, 24] -> [36, 3 x frames x 4 x 4], in the order in which our encoder takes them; each frame the image."""
    cut = [image[:, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] for r, c in zip(*patch_coordinates(6, 6, 2), strict=True)]
    return torch.stack([part[:, None].repeat(1, frames, 1, 1).flatten() for part in cut])


@pytest.mark.parametrize("text", ["air", "glm4"])
def test_the_decoder_is_the_text_model(sources: Path, text: str, tmp_path: Path) -> None:
    outputs = load_file(sources / "outputs.safetensors")
    ckpt = started(sources, tmp_path / "start", text)
    save_file({"input_ids": outputs["ids"]}, tmp_path / "x.safetensors")
    main(Task(ckpt, tmp_path / "x.safetensors", tmp_path / "y.safetensors", logits=True), [])
    found, expected = load_file(tmp_path / "y.safetensors")["logits"], outputs[text]
    assert ((found - expected).abs() / expected.abs().clamp(min=1)).max() <= LOGITS
    model = open_checkpoint(ckpt).manifest.model
    assert (
        model["text"]["rope_theta"] == 1e6
        and model["text"]["mrope_section"] == {"air": [2, 3, 3], "glm4": [1, 1, 2]}[text]
    )
    assert model["vision"]["merger_ffn"] == 96 and (model["text"]["moe"] is None) == (text == "glm4")


@pytest.mark.parametrize("inflation", ["average", "first"])
def test_the_encoder_is_aimv2(sources: Path, inflation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_glmv.inference.layers_ours import Streamed

    outputs = load_file(sources / "outputs.safetensors")
    rows = open_rows(started(sources, tmp_path / "start", patch_init=inflation))
    seen: list[torch.Tensor] = []
    rotary = VisionRotary.forward
    monkeypatch.setattr(VisionRotary, "forward", lambda self, r, c: rotary(self, 0 * r, 0 * c))
    config = _config(rows.model)
    with single_process(config) as session, torch.no_grad():
        encoder = Streamed(config, session, rows, rounded=False).first().chunk.vision
        encoder.downsample.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        encoder(patches(outputs["image"][0], 2), [(6, 6)])
    r, c = patch_coordinates(6, 6, 2)
    expected = outputs["hidden"][0][r * 6 + c]
    assert (seen[0] - expected).abs().max() <= LOGITS * expected.abs().max()
    kernel, theirs = open_checkpoint(rows.path).tensor(KERNEL), tensors_of(sources / "aimv2")
    second = theirs["embeddings.patch_embed.weight"] / 2 if inflation == "average" else torch.zeros(32, 3, 4, 4)
    assert torch.equal(kernel[:, :, 1], second)


def test_between_the_two_weights_are_fresh_and_repeatable(sources: Path, tmp_path: Path) -> None:
    ckpt = open_checkpoint(started(sources, tmp_path / "a", rope_theta=1e4, merger_ffn=80))
    assert ckpt.manifest.model["text"]["rope_theta"] == 1e4
    fc1 = ckpt.tensor("vision.merger.mlp.linear_fc1.weight")
    assert fc1.shape == (160, 64) and 0.018 < fc1.std() < 0.022 and abs(fc1.mean()) < 0.001
    assert torch.equal(ckpt.tensor("vision.merger.post_projection_norm.weight"), torch.ones(64))
    assert not ckpt.tensor("vision.downsample.bias").any()
    started(sources, tmp_path / "b", rope_theta=1e4, merger_ffn=80)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    other = open_checkpoint(started(sources, tmp_path / "c", rope_theta=1e4, merger_ffn=80, seed=5))
    differing = [n for n in ckpt.tensors if not torch.equal(ckpt.tensor(n), other.tensor(n))]
    assert sorted(differing) == [
        "vision.downsample.weight",
        "vision.merger.mlp.linear_fc1.weight",
        "vision.merger.mlp.linear_fc2.weight",
        "vision.merger.proj.weight",
    ]


APPLE = {
    "embeddings.patch_embed.": "preprocessor.patchifier.proj.",
    "embeddings.rms_norm.": "preprocessor.patchifier.norm.",
    "encoder.layers.": "trunk.blocks.",
    "attention.out_proj": "attn.proj",
    "ffn.gate_proj": "mlp.fc1",
    "ffn.up_proj": "mlp.fc3",
    "ffn.down_proj": "mlp.fc2",
    "rms_norm1": "norm_1",
    "rms_norm2": "norm_2",
}


def test_apples_own_spelling_gives_the_same(sources: Path, tmp_path: Path) -> None:
    apple: dict[str, torch.Tensor] = {"head.cls_token": torch.ones(1, 1, 32)}
    for name, tensor in tensors_of(sources / "aimv2").items():
        if "q_proj" in name:
            parts = [tensors_of(sources / "aimv2")[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            name, tensor = name.replace("attention.q_proj", "attn.qkv"), torch.cat(parts)
        elif "k_proj" in name or "v_proj" in name:
            continue
        for old, new in APPLE.items():
            name = name.replace(old, new)
        name = "trunk.post_trunk_norm.weight" if name == "rms_norm.weight" else name
        if name == "embeddings.position_embedding.weight":
            name, tensor = "preprocessor.pos_embed", tensor[None]
        apple[name] = tensor.contiguous()
    (tmp_path / "apple").mkdir()
    save_file(apple, tmp_path / "apple" / "model.safetensors")
    config = json.loads((sources / "aimv2" / "config.json").read_text())
    (tmp_path / "apple" / "config.json").write_text(json.dumps({**config, "model_type": "aimv2"}))
    ours = started(sources, tmp_path / "transformers")
    theirs = started(sources, tmp_path / "from apple", vision=str(tmp_path / "apple"))
    shards = {name: digest for name, digest in files(ours).items() if "distcp" in name}
    assert shards and shards == {name: digest for name, digest in files(theirs).items() if "distcp" in name}


def test_what_does_not_fit_is_named(sources: Path, tmp_path: Path) -> None:
    shutil.copytree(sources / "air", tmp_path / "air")
    config = json.loads((tmp_path / "air" / "config.json").read_text())
    (tmp_path / "air" / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 0}))
    with pytest.raises(MismatchError, match=r"model\.layers\.3\.eh_proj\.weight is unknown"):
        started(tmp_path, tmp_path / "out", vision=str(sources / "aimv2"))
    (tmp_path / "air" / "config.json").write_text(json.dumps({**config, "use_qk_norm": True}))
    with pytest.raises(ConfigError, match="use_qk_norm"):
        started(tmp_path, tmp_path / "out", vision=str(sources / "aimv2"))
    with pytest.raises(ConfigError, match="--text=aimv2_vision_model"):
        started(sources, tmp_path / "out", text="aimv2")
    with pytest.raises(ConfigError, match="--vision=glm4"):
        started(sources, tmp_path / "out", vision="glm4")
    with pytest.raises(ConfigError, match="--patch-init=last"):
        started(sources, tmp_path / "out", patch_init="last")
    assert not (tmp_path / "out").exists()


def _import_with_layer(source: Path | StartOptions, out: Path, mtp: bool) -> list[str]:
    """What the import said."""
    said: list[str] = []
    import_hf(ImportOptions(source, out, without_tokenizer=True, mtp=mtp), said.append)
    return said


def _losses_with_layer(ckpt: Path) -> torch.Tensor:
    """[2, T] of a pack, with the weights of a checkpoint: the main losses, and the prediction layer's."""
    config = tiny.config(from_dict({"experiment": "test", "model": open_checkpoint(ckpt).manifest.model}).model)
    with single_process(config) as session:
        from megatron_glmv.checkpoint.manager import CheckpointManager, Identity
        from megatron_glmv.config.load import to_json
        from megatron_glmv.model.build import build_model, sharding_metadata
        from megatron_glmv.train.step import model_inputs

        groups = session.groups
        (model,) = build_model(config, groups, backend=session.backend, device=session.device)
        identity = Identity(model=to_json(config)["model"], tokenizer_fingerprint="none", config_fingerprint="")
        topology = groups.topology.to_json()
        manager = CheckpointManager(ckpt, config.checkpoint, identity, topology, sharding_metadata(groups))
        manager.load_weights(ckpt, [model])
        inputs = model_inputs(tiny.pack(3, config.model.vision), session.device, model.vision, ahead=True)
        with torch.no_grad():
            model.eval()
            return model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)  # type: ignore[no-any-return]


def test_airs_prediction_layer_is_kept_where_it_is_wanted(sources: Path, tmp_path: Path) -> None:
    """Names and numbers by hand; that a model with them computes the layer's definition is tests/dist/test_prediction.
    Copies of embedding and head under the layer's name are not taken twice."""
    start, theirs = StartOptions(sources / "air", sources / "aimv2"), tensors_of(sources / "air")
    said = _import_with_layer(start, tmp_path / "without", mtp=False)
    dropped = [name for name in theirs if name.startswith("model.layers.3.")]
    assert f"left out: the prediction layer, {len(dropped)} tensors" in said[0] and len(dropped) > 30
    assert not any("mtp" in name for name in open_checkpoint(tmp_path / "without").tensors)

    said = _import_with_layer(start, tmp_path / "with", mtp=True)
    assert not any("left out" in line for line in said)
    ckpt, layer = open_checkpoint(tmp_path / "with"), "language.mtp.layers.0."
    assert ckpt.manifest.model["mtp"]["layers"] == 1
    named = {
        "enorm.weight": "enorm.weight",
        "hnorm.weight": "hnorm.weight",
        "eh_proj.weight": "eh_proj.weight",
        "final_layernorm.weight": "shared_head.norm.weight",
        "transformer_layer.self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "transformer_layer.self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "transformer_layer.pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
        "transformer_layer.mlp.router.weight": "mlp.gate.weight",
        "transformer_layer.mlp.router.expert_bias": "mlp.gate.e_score_correction_bias",
        "transformer_layer.mlp.shared_experts.linear_fc2.weight": "mlp.shared_experts.down_proj.weight",
    }
    for ours, other in named.items():
        assert torch.equal(ckpt.tensor(layer + ours), theirs[f"model.layers.3.{other}"]), ours
    experts = ckpt.tensor(f"{layer}transformer_layer.mlp.experts.experts.linear_fc1.weight")
    for e in range(8):
        halves = [theirs[f"model.layers.3.mlp.experts.{e}.{half}_proj.weight"] for half in ("gate", "up")]
        assert torch.equal(experts[e], torch.cat(halves))
    losses = _losses_with_layer(tmp_path / "with")
    assert losses.shape == (2, tiny.PACK) and losses.isfinite().all() and losses[1].std() > 0.1

    out = exported(tmp_path / "with", tmp_path / "hf")
    norm = tensors_of(out)["model.language_model.layers.3.shared_head.norm.weight"]
    assert torch.equal(norm, theirs["model.layers.3.shared_head.norm.weight"])
    assert json.loads((out / "config.json").read_text())["text_config"]["num_nextn_predict_layers"] == 1
    assert not verify(tmp_path / "with", out).differences
    assert not any("left out" in line for line in _import_with_layer(out, tmp_path / "again", mtp=True))
    assert not verify(tmp_path / "with", tmp_path / "again").differences
    assert "left out" in _import_with_layer(out, tmp_path / "dropped", mtp=False)[0]
    assert not verify(tmp_path / "without", tmp_path / "dropped").differences


def test_a_prediction_layer_that_cannot_be_kept_is_refused(sources: Path, tmp_path: Path) -> None:
    vision = sources / "aimv2"
    with pytest.raises(ConfigError, match=r"--mtp.*has no prediction layer"):
        _import_with_layer(StartOptions(sources / "glm4", vision), tmp_path / "out", mtp=True)
    shutil.copytree(sources / "air", tmp_path / "air")
    theirs = tensors_of(tmp_path / "air")
    theirs["model.layers.3.shared_head.head.weight"][5, 5] += 1
    save_file(theirs, tmp_path / "air" / "model.safetensors")
    with pytest.raises(MismatchError, match=r"shared_head\.head\.weight is another tensor than lm_head\.weight"):
        _import_with_layer(StartOptions(tmp_path / "air", vision), tmp_path / "out", mtp=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_transformers_loads_it_after_an_export(sources: Path, tmp_path: Path) -> None:
    outputs = load_file(sources / "outputs.safetensors")
    ids = outputs["ids"]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}
    save_file(given, tmp_path / "x.safetensors")
    out = [exported(started(sources, tmp_path / t, t), tmp_path / f"{t} out") for t in ("air", "glm4")]
    for text, report in zip(("air", "glm4"), reload(tmp_path / "job", out, tmp_path / "x.safetensors"), strict=True):
        assert report["missing_keys"] == report["unexpected_keys"] == report["mismatched_keys"] == []
        assert ((report["logits"] - outputs[text]).abs() / outputs[text].abs().clamp(min=1)).max() <= LOGITS

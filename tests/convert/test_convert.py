"""Import and export against transformers, which wrote the one side and reads the other.

Import and export move bytes, so weights have to be equal in every bit. Logits are computed by two programs and agree to
2e-5 of max(1, |logit|) (derivation: tests/parity/test_parity.py). A wrong table that undid itself on the way back would
pass the comparison of weights; it fails that of logits after import, and after training, where each side reads what the
other wrote. Not covered: models of real width (tools/bench_convert.py), released files.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from convert.conftest import CASE, fused, make_reference, reload, tensors_of, write_sharded
from data.small_set import make
from faults.training import SMALL, run
from parity.cases import MODELS
from parity.compare import LOGITS
from parity.conftest import Reference
from safetensors.torch import load_file, save_file

from megatron_glmv.checkpoint.hf.config import model_to_hf
from megatron_glmv.checkpoint.hf.exporting import ExportOptions, export_hf
from megatron_glmv.checkpoint.hf.importing import ImportOptions, import_hf
from megatron_glmv.checkpoint.manifest import hash_file
from megatron_glmv.checkpoint.reader import open_checkpoint
from megatron_glmv.config.load import compose
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.inference.score import Task, main

LAYOUTS = {
    "tp2": ["parallel.tensor=2"],
    "pp2": ["parallel.pipeline=2"],
    "ep2": ["parallel.data=2", "parallel.expert=2"],
    "product": ["parallel.tensor=2", "parallel.pipeline=2", "parallel.expert=2"],
    "vpp2": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    "etp2": ["parallel.tensor=2", "parallel.expert_tensor=2", "parallel.data=2", "parallel.expert=2"],
}


def imported(hf: Path, out: Path) -> Path:
    import_hf(ImportOptions(hf, out, without_tokenizer=True))
    return out


def exported(ckpt: Path, out: Path, **options: object) -> Path:
    export_hf(ExportOptions(ckpt, out, **options))  # type: ignore[arg-type]
    return out


def files(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): hash_file(p).sha256 for p in directory.rglob("*") if p.is_file()}


def difference(ours: torch.Tensor, theirs: torch.Tensor, given: Path) -> float:
    """The largest, over max(1, |logit|), on tokens that are not padding."""
    real = load_file(given)["attention_mask"].bool()
    return float(((ours[real] - theirs[real]).abs() / theirs[real].abs().clamp(min=1)).max())


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("glm45v", "product"),
        ("glm41v", "tp2"),
        *(pytest.param(m, x, marks=pytest.mark.slow) for m, x in (("glm45v", "tp2"), ("glm45v", "pp2"))),
        *(pytest.param(m, x, marks=pytest.mark.slow) for m, x in (("glm45v", "ep2"), ("glm41v", "pp2"))),
        *(pytest.param("glm45v", x, marks=pytest.mark.slow) for x in ("vpp2", "etp2")),
    ],
)
def test_imported_weights_give_transformers_logits(
    reference: Reference, model: str, layout: str, tmp_path: Path
) -> None:
    ckpt = imported(reference.hf(model), tmp_path / "ours")
    main(Task(ckpt, reference.input(CASE), tmp_path / "x.safetensors", logits=True), LAYOUTS[layout])
    found = load_file(tmp_path / "x.safetensors")["logits"]
    assert difference(found, reference.outputs(model, CASE)["logits"], reference.input(CASE)) <= LOGITS


def test_what_comes_back_is_what_went_in_and_transformers_loads_it(reference: Reference, tmp_path: Path) -> None:
    """All models, in one file and in several; in the dtype it was stored in, and in bf16."""
    out = []
    for i, model in enumerate(MODELS):
        ckpt = imported(reference.hf(model), tmp_path / model / "ours")
        assert open_checkpoint(ckpt, verify=True).manifest.step == 0
        out.append(exported(ckpt, tmp_path / model / "back", **({} if i % 2 else {"max_shard_size": 200_000})))
        assert len(list(out[-1].glob("*.safetensors"))) > 1 or i % 2
        theirs, back = tensors_of(reference.hf(model)), tensors_of(out[-1])
        assert back.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
        index = json.loads((out[-1] / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == theirs.keys()
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in theirs.values())
    half = exported(tmp_path / "glm45v" / "ours", tmp_path / "half", dtype="bf16")
    for name, tensor in tensors_of(half).items():
        exact = name.endswith("e_score_correction_bias")
        original = tensors_of(reference.hf("glm45v"))[name]
        assert torch.equal(tensor, original if exact else original.bfloat16()), name
    reports = reload(tmp_path / "job", [*out, half], reference.input(CASE))
    for model, report in zip([*MODELS, "half"], reports, strict=True):
        assert report["missing_keys"] == report["unexpected_keys"] == report["mismatched_keys"] == [], model
        assert report["bias"] == ([] if model.startswith("glm41v") else ["torch.float32"])
        assert report["dtype"] == ("torch.bfloat16" if model == "half" else "torch.float32")
        if model != "half":
            expected = reference.outputs(model, CASE)["logits"]
            assert difference(report["logits"], expected, reference.input(CASE)) <= LOGITS


def test_experts_fused_or_one_by_one_and_files_one_or_many_are_the_same_checkpoint(
    reference: Reference, tmp_path: Path
) -> None:
    single = imported(reference.hf("glm45v"), tmp_path / "single")
    many = tmp_path / "many"
    write_sharded(many, tensors_of(reference.hf("glm45v")), 4)
    (many / "config.json").write_bytes((reference.hf("glm45v") / "config.json").read_bytes())
    sources = {
        "many": many,
        "fused": fused(reference.hf("glm45v"), tmp_path / "f"),
        "weight": fused(reference.hf("glm45v"), tmp_path / "w", ".weight"),
    }
    for name, source in sources.items():
        made = imported(source, tmp_path / f"from {name}")
        for shard in single.rglob("__*"):
            assert hash_file(shard) == hash_file(made / shard.relative_to(single)), name


@pytest.mark.slow
def test_three_steps_of_training_between_import_and_export(tmp_path: Path) -> None:
    """Asymmetric: what training on four ranks wrote is read by transformers."""
    make(tmp_path / "set", images=24, clips=2, texts=24, sound=True)
    words = Tokenizer.load(tmp_path / "set" / "tokenizer")
    loadable = "model.vision.ffn=128"  # transformers makes the encoder's MLP as wide as the decoder
    model = compose([*SMALL, loadable]).model
    ids = torch.randint(40, words.vocab_size - 40, (2, 24), generator=torch.Generator().manual_seed(3))
    types = torch.zeros_like(ids)
    types[0, 5:11] = 1
    ids[0, 4], ids[0, 5:11], ids[0, 11] = (
        words.special("<|begin_of_image|>"),
        words.special("<|image|>"),
        words.special("<|end_of_image|>"),
    )
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": types,
        "pixel_values": torch.randn(24, 1176, generator=torch.Generator().manual_seed(4)),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }
    (tmp_path / "job" / "inputs").mkdir(parents=True)
    save_file(given, tmp_path / "job" / "inputs" / f"{CASE}.safetensors")
    tokens = {
        "image_token_id": words.special("<|image|>"),
        "image_start_token_id": words.special("<|begin_of_image|>"),
        "image_end_token_id": words.special("<|end_of_image|>"),
        "video_start_token_id": words.special("<|begin_of_video|>"),
        "video_end_token_id": words.special("<|end_of_video|>"),
    }
    config = {k: v for k, v in model_to_hf(model, tokens=tokens).items() if k not in ("architectures", "model_type")}
    spec = {"kind": "Glm4vMoe", "seed": 5, "attention": "eager", "config": config, "cases": [CASE]}
    written = make_reference(tmp_path / "job", {"model": spec})
    start = tmp_path / "start"
    import_hf(ImportOptions(written.hf("model"), start, tokenizer=tmp_path / "set" / "tokenizer"))
    layout = [*LAYOUTS["product"], loadable, "train.steps=3", "checkpoint.every=3", f"init_from={start}"]
    run(tmp_path / "set" / "shards", tmp_path / "run", *layout)
    out = exported(tmp_path / "run", tmp_path / "out")
    before, after = tensors_of(written.hf("model")), tensors_of(out)
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.9 * len(before)
    (report,) = reload(tmp_path / "reload", [out], written.input(CASE))
    assert report["missing_keys"] == report["unexpected_keys"] == []
    main(Task(tmp_path / "run", written.input(CASE), tmp_path / "x.safetensors", logits=True), [])
    found = load_file(tmp_path / "x.safetensors")["logits"]
    assert difference(found, report["logits"], written.input(CASE)) <= LOGITS
    assert difference(found, written.outputs("model", CASE)["logits"], written.input(CASE)) > 1e-3  # training moved it

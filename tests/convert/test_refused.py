"""Directories that are hostile, damaged or another model's: refused by name, before anything is allocated for them."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from convert.conftest import tensors_of, write_sharded
from convert.test_convert import exported, files, imported
from parity.conftest import Reference
from safetensors.torch import load_file, save_file

from megatron_glmv.checkpoint.errors import CheckpointError, MismatchError, ReadError
from megatron_glmv.checkpoint.hf.assets import CARRIED
from megatron_glmv.checkpoint.hf.exporting import ExportOptions, export_hf
from megatron_glmv.checkpoint.hf.importing import ImportOptions, import_hf
from megatron_glmv.checkpoint.hf.rows import open_hf
from megatron_glmv.checkpoint.hf.safetensors import make_header, read_directory, read_header
from megatron_glmv.checkpoint.reader import open_checkpoint
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.tokenizer import SPECIAL_TOKENS, Tokenizer, train_tokenizer

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "header of 0 bytes in a file of 0"),
    "a header longer than the file": (raw({"a": F32}, length=1 << 40), "header of 1099511627776 bytes"),
    "a header of 33 MiB": (raw(b" " * (33 << 20)), "header of 34603008 bytes"),
    "no JSON": (raw(b"\x80\x04."), "not a safetensors file"),
    "JSON too deep": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not a safetensors file"),
    "a list": (raw([]), "no object"),
    "a name twice": (raw(b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}"), "twice"),
    "a shape of petabytes": (raw({"a": {**F32, "shape": [1 << 30, 1 << 30]}}), "has the bytes 0..8"),
    "bytes beyond the file": (raw({"a": {**F32, "shape": [4], "data_offsets": [0, 16]}}), "its tensors end at"),
    "bytes that overlap": (raw({"a": F32, "b": F32}), "b F32"),
    "a hole": (raw({"a": {**F32, "data_offsets": [8, 16]}}, b"\0" * 16), "has the bytes 8..16"),
    "bytes left over": (raw({"a": F32}, b"\0" * 12), "its tensors end at"),
    "a negative size": (raw({"a": {**F32, "shape": [-2]}}), r"the shape \(-2,\)"),
    "a size that is no number": (raw({"a": {**F32, "shape": ["2"]}}), "the shape"),
    "a dtype that is none": (raw({"a": {**F32, "dtype": "PICKLE"}}), "weights can be F32, BF16, F16"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}), "KeyError"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused_without_memory_for_it(kind: str, tmp_path: Path) -> None:
    content, message = HOSTILE[kind]
    (tmp_path / "model.safetensors").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ReadError, match=message):
        read_header(tmp_path / "model.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_a_header_of_ours_is_read_by_the_library(tmp_path: Path) -> None:
    shapes = {"a": (torch.float32, (2, 3)), "b": (torch.bfloat16, (5,)), "c": (torch.bfloat16, (0, 4))}
    (tmp_path / "x.safetensors").write_bytes(make_header(shapes) + bytes(34))
    found = load_file(tmp_path / "x.safetensors")
    assert {name: (t.dtype, tuple(t.shape)) for name, t in found.items()} == shapes
    assert {name: (t.dtype, t.shape) for name, t in read_header(tmp_path / "x.safetensors").items()} == shapes


def _index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        change(content["weight_map"])
        path.write_text(json.dumps(content))

    return damage


def _link_out(directory: Path) -> None:
    target = directory.parent / "elsewhere.safetensors"
    (directory / "model-00001-of-00002.safetensors").rename(target)
    (directory / "model-00001-of-00002.safetensors").symlink_to(target)


def _only_pickles(directory: Path) -> None:
    for path in directory.glob("model*"):
        path.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")


DIRECTORIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a path upwards": (_index(lambda m: m.update(x="../secret.safetensors")), "no safetensors file of this directory"),
    "an absolute path": (_index(lambda m: m.update(x="/etc/passwd")), "no safetensors file of this directory"),
    "a tensor in no file": (_index(lambda m: m.update(x="model-00001-of-00002.safetensors")), "in no file: x"),
    "a tensor not in the index": (_index(lambda m: m.pop("a")), "has a in None, and it is in"),
    "a file that is missing": (lambda d: (d / "model-00002-of-00002.safetensors").unlink(), "is missing"),
    "a link that leads out": (_link_out, "leads out of the directory"),
    "pickles alone": (_only_pickles, "can run code"),
}


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_files_outside_the_directory_and_indices_that_lie_are_refused(kind: str, tmp_path: Path) -> None:
    damage, message = DIRECTORIES[kind]
    write_sharded(tmp_path / "hf", {name: torch.ones(2) for name in "abc"}, 2)
    assert read_directory(tmp_path / "hf").keys() == {"a", "b", "c"}
    damage(tmp_path / "hf")
    with pytest.raises(ReadError, match=message):
        read_directory(tmp_path / "hf")


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(2)}, blobs / "123")
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blobs / "123", snapshot))
    assert read_directory(snapshot)["a"].shape == (2,)


def test_another_model_and_a_rounded_bias_are_refused(reference: Reference, tmp_path: Path) -> None:
    theirs = tensors_of(reference.hf("glm45v"))
    bias = "model.language_model.layers.1.mlp.gate.e_score_correction_bias"
    config = (reference.hf("glm45v") / "config.json").read_text()

    def directory(name: str, tensors: dict[str, torch.Tensor], **changed: object) -> Path:
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({**json.loads(config), **changed}))
        return tmp_path / name

    with pytest.raises(MismatchError, match=r"1 tensors do not fit the model:\n  lm_head\.weight .* is missing"):
        open_hf(directory("lost", {n: t for n, t in theirs.items() if n != "lm_head.weight"}))
    with pytest.raises(ConfigError, match="model_type=qwen2_vl"):
        open_hf(directory("other", theirs, model_type="qwen2_vl"))
    rounded = directory("rounded", {**theirs, bias: theirs[bias].bfloat16()})
    with pytest.raises(MismatchError, match=f"{bias} is torch.bfloat16; rounded .* --allow-rounded-bias"):
        imported(rounded, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_hf(ImportOptions(rounded, tmp_path / "out", without_tokenizer=True, allow_rounded_bias=True))
    kept = open_checkpoint(tmp_path / "out").tensor("language.decoder.layers.1.mlp.router.expert_bias")
    assert kept.dtype == torch.float32 and torch.equal(kept, theirs[bias].bfloat16().float())


def test_tokenizer_processor_and_templates_are_carried_along_and_code_is_not(
    reference: Reference, tmp_path: Path
) -> None:
    shutil.copytree(reference.hf("glm41v"), tmp_path / "hf")
    with pytest.raises(ConfigError, match="--without-tokenizer"):
        import_hf(ImportOptions(tmp_path / "hf", tmp_path / "ours"))
    train_tokenizer(["two words and 3 more"] * 8, tmp_path / "hf", 256 + len(SPECIAL_TOKENS) + 20)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja"):
        (tmp_path / "hf" / name).write_text(f'{{"name": "{name}"}}')
    (tmp_path / "hf" / "modeling.py").write_text("raise SystemExit")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling.X"}, "mine": 7}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    import_hf(ImportOptions(tmp_path / "hf", tmp_path / "ours"))
    words = Tokenizer.load(tmp_path / "ours" / "tokenizer")
    assert open_checkpoint(tmp_path / "ours").manifest.tokenizer_fingerprint == words.fingerprint
    out = exported(tmp_path / "ours", tmp_path / "back")
    for name in CARRIED:
        if name != "config.json" and (tmp_path / "hf" / name).exists():
            assert (out / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
    made = json.loads((out / "config.json").read_text())
    assert made["mine"] == 7 and "auto_map" not in made
    assert not (out / "modeling.py").exists() and not list((tmp_path / "ours").rglob("*.py"))
    card = (out / "README.md").read_text()
    assert words.fingerprint in card and "Glm4vForConditionalGeneration" in card
    listed = json.loads((out / "glmv_export.json").read_text())["files"]
    there = {n: d for n, d in files(out).items() if n not in ("glmv_export.json", "config.json")}
    assert {name: record["sha256"] for name, record in listed.items()} == there
    other = tmp_path / "other"
    train_tokenizer(["entirely other words"] * 8, other, 256 + len(SPECIAL_TOKENS) + 10)
    shutil.rmtree(tmp_path / "ours" / "tokenizer")
    with pytest.raises(ConfigError, match=r"--assets=.*other: the tokenizer of .* was not found"):
        export_hf(ExportOptions(tmp_path / "ours", tmp_path / "again", assets=other))


def test_a_manifest_that_was_edited_is_not_exported(reference: Reference, tmp_path: Path) -> None:
    imported(reference.hf("glm45v"), tmp_path / "ours")
    path = open_checkpoint(tmp_path / "ours").path / "manifest.json"
    path.write_text(path.read_text().replace('"step": 0', '"step": 1'))
    with pytest.raises(CheckpointError, match="digest"):
        exported(tmp_path / "ours", tmp_path / "back")

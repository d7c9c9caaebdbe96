"""`glmv convert verify` on copies that were damaged the ways conversions go wrong: it names the tensor each time.

Each damage is done with the safetensors library to a directory of transformers', or with torch to a chunk of a
checkpoint; a test first sees that the copy differs from the original.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convert.conftest import fused, tensors_of
from convert.test_convert import exported, imported
from parity.conftest import Reference
from safetensors.torch import save_file

from megatron_glmv.checkpoint.hf.verify import verify

Tensors = dict[str, torch.Tensor]
LAYER = "model.language_model.layers.2."
HEAD = "model.visual.blocks.1.attn.proj.weight"  # square


def swap(one: str, other: str) -> Callable[[Tensors], Tensors]:
    return lambda x: {**x, one: x[other], other: x[one]}


def change(name: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda x: {**x, name: how(x[name]).contiguous()}


def flip(tensor: torch.Tensor) -> torch.Tensor:
    flipped = tensor.clone()
    flipped.view(torch.int32).view(-1)[77] ^= 1
    return flipped


EXPERTS = f"{LAYER}mlp.experts."
BIAS, ROUTER = f"{LAYER}mlp.gate.e_score_correction_bias", f"{LAYER}mlp.gate.weight"
Q = f"{LAYER}self_attn.q_proj.weight"
GATE, UP = f"{LAYER}mlp.shared_experts.gate_proj.weight", f"{LAYER}mlp.shared_experts.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, str]]] = {
    "a swapped expert": (
        swap(f"{EXPERTS}1.down_proj.weight", f"{EXPERTS}6.down_proj.weight"),
        {
            f"{EXPERTS}1.down_proj.weight": f"B has it in {EXPERTS}6.down_proj.weight",
            f"{EXPERTS}6.down_proj.weight": f"B has it in {EXPERTS}1.down_proj.weight",
        },
    ),
    "a transposed square matrix": (change(HEAD, lambda t: t.T), {HEAD: "it is transposed"}),
    "a rounded bias": (change(BIAS, lambda t: t.bfloat16().float()), {BIAS: "rounded to bfloat16 in B"}),
    "a zeroed router": (change(ROUTER, torch.zeros_like), {ROUTER: "all zero in B"}),
    "a permuted QKV group": (
        change(Q, lambda t: t.reshape(2, -1, t.shape[1]).flip(0).reshape(t.shape)),
        {Q: "rows are in another order"},
    ),
    "gate and up exchanged": (swap(GATE, UP), {GATE: f"B has it in {UP}", UP: f"B has it in {GATE}"}),
    "one flipped bit": (
        change("lm_head.weight", flip),
        {"lm_head.weight": "1 of 8192 elements differ, the first at (1, 13); 1 bit"},
    ),
}


@pytest.fixture(scope="module")
def sides(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights four times: as transformers wrote them, fused, imported, exported again."""
    folder, hf = tmp_path_factory.mktemp("sides"), reference.hf("glm45v")
    ours = imported(hf, folder / "ours")
    return {"hf": hf, "fused": fused(hf, folder / "fused"), "ours": ours, "back": exported(ours, folder / "back")}


def test_the_same_weights_are_equal_whatever_holds_them(sides: dict[str, Path]) -> None:
    for a in sides.values():
        for b in sides.values():
            verdict = verify(a, b)
            assert verdict.differences == () and verdict.tensors == 156 and verdict.bytes > 1_000_000


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("side", ["hf", "fused", "ours"])
def test_damage_is_named(sides: dict[str, Path], damage: str, side: str, tmp_path: Path) -> None:
    """The damaged side is transformers'; the sound one of each kind. And the damage arrives through an import."""
    how, expected = DAMAGE[damage]
    sound = tensors_of(sides["hf"])
    wrong = how(sound)
    assert any(not torch.equal(wrong[name], sound[name]) for name in expected), "nothing was damaged"
    (tmp_path / "bad").mkdir()
    save_file(wrong, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(sides["hf"] / "config.json", tmp_path / "bad")
    verdict = verify(sides[side], imported(tmp_path / "bad", tmp_path / "imported"))
    assert verify(sides[side], tmp_path / "bad").differences == verdict.differences
    assert {d.name for d in verdict.differences} == expected.keys()
    for difference in verdict.differences:
        assert expected[difference.name] in difference.what
    assert verdict.exit_code == 77


def test_a_bit_that_flips_on_the_disk_of_a_checkpoint(sides: dict[str, Path], tmp_path: Path) -> None:
    """In the bytes of a chunk, by which torch.load sees nothing; and the checkpoint's own sha256 sees it too."""
    from megatron_glmv.checkpoint.errors import ReadError
    from megatron_glmv.checkpoint.reader import open_checkpoint
    from megatron_glmv.checkpoint.slices import Slices

    shutil.copytree(sides["ours"], tmp_path / "bad")
    checkpoint = open_checkpoint(tmp_path / "bad")
    name = "language.decoder.layers.3.mlp.experts.experts.linear_fc2.weight"
    chunk = checkpoint.tensors[name].chunks[5]
    at = Slices(checkpoint)._start(chunk, torch.float32) + 4 * 100
    path = checkpoint.path / chunk.file
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)
    damaged, difference = verify(sides["hf"], tmp_path / "bad").differences
    assert damaged.name == str(path) and "sha256" in damaged.what
    assert difference.name == "model.language_model.layers.3.mlp.experts.5.down_proj.weight"
    assert "1 of 2048 elements" in difference.what and "1 bit flipped" in difference.what
    with pytest.raises(ReadError, match="sha256"):
        open_checkpoint(tmp_path / "bad", verify=True)


def test_a_file_that_is_not_what_was_exported_is_named(sides: dict[str, Path], tmp_path: Path) -> None:
    """Both sides hold the same changed tensor, so that only the sha256 of the export can say it."""
    shutil.copytree(sides["back"], tmp_path / "bad")
    (path,) = (tmp_path / "bad").glob("*.safetensors")
    tensors = tensors_of(tmp_path / "bad")
    save_file({**tensors, ROUTER: tensors[ROUTER] + 1}, path, metadata={"format": "pt"})
    (tmp_path / "bad" / "README.md").write_text("mine")  # which is no weight
    changed = imported(tmp_path / "bad", tmp_path / "ours")
    assert verify(sides["ours"], sides["back"]).files > 3
    (difference,) = verify(tmp_path / "bad", changed).differences
    assert difference.name == str(path) and "does not have the sha256" in difference.what


def test_dtypes_are_part_of_it(sides: dict[str, Path], tmp_path: Path) -> None:
    half = exported(sides["ours"], tmp_path / "half", dtype="bf16")
    strict = verify(sides["hf"], half)
    assert len(strict.differences) == 156 - 3 and all("bfloat16" in d.what for d in strict.differences)
    rounded = verify(sides["hf"], half, round_to="bf16")
    assert rounded.differences == () and rounded.rounded == 156 - 3


def test_another_rotary_base_is_named_and_the_command_says_so(sides: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(sides["hf"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 1e6
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    command = [
        sys.executable,
        "-m",
        "megatron_glmv.cli",
        "convert",
        "verify",
        str(sides["ours"]),
        str(tmp_path / "other"),
    ]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert done.returncode == 77 and not said["equal"] and said["tensors"] == 156
    assert [d["what"] for d in said["differences"]] == ["model.text.rope_theta is 10000.0 and 1000000.0"]

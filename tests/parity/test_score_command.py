"""`glmv score` as a command: its files, its refusals, launched by others. Numbers are test_parity.py's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity.cases import PATCH_VALUES
from parity.checkpoints import model_config
from parity.compare import LOGITS, compare
from parity.conftest import Reference
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.errors import DataError
from megatron_glmv.inference.score import Task, main
from megatron_glmv.inference.score_inputs import read_score_input
from megatron_glmv.inference.score_outputs import write_fp32

Tensors = dict[str, torch.Tensor]


def argv(reference: Reference, out: Path, *more: str) -> list[str]:
    ckpt, given = reference.ckpt("glm45v"), reference.input("mixture")
    return ["score", "--ckpt", str(ckpt), "--input", str(given), "--out", str(out), *more]


def test_the_command_writes_what_it_promises(reference: Reference, tmp_path: Path) -> None:
    out, grads = tmp_path / "new" / "out.safetensors", tmp_path / "grads.safetensors"
    options = argv(reference, out, "--logits", "--grads", str(grads), "parallel.pipeline=2")
    done = subprocess.run([sys.executable, "-m", "megatron_glmv.cli", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["layout"] == "2 ranks: pipeline 2" and summary["step"] == 1 and summary["precision"] == "fp32"
    x, found = load_file(reference.input("mixture")), load_file(out)
    rows, width = x["input_ids"].shape
    assert {name: (tuple(t.shape), t.dtype) for name, t in found.items()} == {
        "logprobs": ((rows, width - 1), torch.float32),
        "logits": ((rows, width, 128), torch.float32),
        "position_ids": ((3, rows, width), torch.int64),
    }
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["mean_nll"]) == summary["mean_nll"]
    assert compare(load_file(grads), reference.gradients("glm45v", "mixture")) > 0
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.safetensors"], "parts were left behind"


@pytest.mark.slow
def test_ranks_that_a_launcher_started(reference: Reference, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "megatron_glmv.cli"]
    options = argv(reference, out, "--logits", "parallel.tensor=2")
    done = subprocess.run([sys.executable, "-m", *launcher, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean_nll") == 1
    x, theirs = load_file(reference.input("mixture")), reference.outputs("glm45v", "mixture")["logits"]
    real = x["attention_mask"].bool()
    assert (load_file(out)["logits"][real] - theirs[real]).abs().max() < 10 * LOGITS
    assert [p.name for p in tmp_path.iterdir()] == ["out.safetensors"]


def test_without_logits_and_gradients_the_same_log_probabilities(reference: Reference, tmp_path: Path) -> None:
    task = Task(reference.ckpt("glm41v"), reference.input("images"), tmp_path / "a.safetensors")
    main(task)
    found = load_file(task.out)
    assert found.keys() == {"logprobs", "position_ids"}
    ids = load_file(task.input)["input_ids"]
    expected = reference.outputs("glm41v", "images")["logits"][:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
    assert (found["logprobs"] - expected[..., 0]).abs().max() < 10 * LOGITS


def test_rows_do_not_see_each_other_nor_their_padding(reference: Reference, tmp_path: Path) -> None:
    """The text row of a batch alone gives the numbers that it has in the batch, wherever its padding is."""
    x = load_file(reference.input("mixture"))
    alone = x["input_ids"][1][x["attention_mask"][1].bool()]
    padded = torch.cat([alone[:5], torch.full((3,), 99), alone[5:]])[None]
    mask = torch.ones_like(padded)
    mask[0, 5:8] = 0
    save_file({"input_ids": padded, "attention_mask": mask}, tmp_path / "row.safetensors")
    for name, given in (("batch", reference.input("mixture")), ("row", tmp_path / "row.safetensors")):
        main(Task(reference.ckpt("glm45v"), given, tmp_path / f"{name}-out.safetensors", logits=True))
    row = load_file(tmp_path / "row-out.safetensors")["logits"][0][mask[0].bool()]
    batch = load_file(tmp_path / "batch-out.safetensors")["logits"][1][x["attention_mask"][1].bool()]
    assert (row - batch).abs().max() < LOGITS


def _without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda x: {name: t for name, t in x.items() if name not in names}


def _with(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda x: {**x, name: change(x[name]).contiguous()}


def _one_id(value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda ids: torch.where(torch.arange(ids.shape[1]) == 40, value, ids)


DAMAGE: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no ids": (_without("input_ids"), "has no input_ids"),
    "an unknown tensor": (lambda x: {**x, "second_per_grid_ts": torch.ones(1)}, "second_per_grid_ts"),
    "ids without rows": (_with("input_ids", lambda t: t[0]), r"input_ids has shape \(49,\)"),
    "an id out of the vocabulary": (_with("input_ids", _one_id(128)), "vocabulary has 128"),
    "a negative id": (_with("input_ids", _one_id(-100)), "from -100"),
    "another mask": (_with("attention_mask", lambda t: t[:, 1:]), r"attention_mask has shape \(3, 48\)"),
    "nothing but padding": (_with("attention_mask", torch.zeros_like), "leaves no token"),
    "no types": (_without("mm_token_type_ids"), "image_grid_thw has 4 pictures more"),
    "an unknown type": (_with("mm_token_type_ids", lambda t: t * 2), "has 4 in row 0"),
    "grids without pixels": (_without("pixel_values"), "pixel_values and image_grid_thw belong together"),
    "too few patches": (_with("pixel_values", lambda t: t[1:]), "pixel_values has shape"),
    "other patches": (_with("pixel_values", lambda t: t[:, 1:]), f"{PATCH_VALUES}"),
    "an odd grid": (_with("image_grid_thw", lambda t: t + torch.tensor([0, 1, 0])), "multiples of 2"),
    "an image with time": (_with("image_grid_thw", lambda t: t + torch.tensor([1, 0, 0])), "an image has t = 1"),
    "a picture missing": (_without("pixel_values_videos", "video_grid_thw"), "video_grid_thw has none left"),
    "images in another order": (
        _with("image_grid_thw", lambda t: t.flip(0)),
        "row 0 has 6 placeholders from token 4; image_grid_thw has a picture of 4 x 4",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_inputs_that_do_not_fit_are_refused_by_name(reference: Reference, damage: str, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    path = tmp_path / "x.safetensors"
    save_file(change(load_file(reference.input("mixture"))), path)
    model = model_config(json.loads((reference.hf("glm45v") / "config.json").read_text()))
    with pytest.raises(DataError, match=message):
        read_score_input(path, model)


def test_a_file_that_is_no_safetensors_and_options_of_training_are_refused(
    reference: Reference, tmp_path: Path
) -> None:
    task = Task(reference.ckpt("glm45v"), tmp_path / "x.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(DataError, match=r"x\.safetensors"):
        main(task)
    task.input.write_bytes(b"{}")
    with pytest.raises(DataError, match="safetensors"):
        main(task)
    good = Task(task.ckpt, reference.input("text"), task.out)
    for override, message in (
        ("train.steps=3", "train.steps=3: cannot be given here"),
        ("parallel.tensr=2", "did you mean parallel.tensor"),
        ("parallel.tensor=two", "expected an integer"),
        ("parallel.tensor=3", "has to divide"),
        ("parallel.context=3", "parallel.context"),
        ("parallel", "cannot be given here"),
    ):
        with pytest.raises(ConfigError, match=message):
            main(good, [override])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_streamed_file_is_safetensors(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.randn(5).bfloat16(), "empty": torch.zeros(0, 4)}
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    write_fp32(tmp_path / "x", shapes, iter(tensors.values()), {"step": "1"})
    found = load_file(tmp_path / "x")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], t.float()) for name, t in tensors.items())
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"step": "1"}
    with pytest.raises(ValueError, match="announced"):
        write_fp32(tmp_path / "y", {"a": (4,)}, iter([torch.zeros(3)]), {})

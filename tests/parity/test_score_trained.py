"""`glmv score` on checkpoints that training wrote: optimizer state beside the weights, bf16 weights, another layout.

The run is bf16 on two ranks with experts spread. Scored in fp32 (the bf16 weights, computed in fp32) two layouts differ
by the order of sums, as in test_parity.py. In bf16 every rounding adds a relative error of up to 2^-9, and some ten
of them lie between a token and its logits of order one: the bound on log probabilities, and on the relative error of
the output layer's gradient, is 0.03 (measured: 0.003 and 0.006).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data.small_set import make
from faults.training import run
from parity.compare import LOGITS, compare
from safetensors.torch import load_file, save_file

from megatron_glmv.checkpoint.reader import open_checkpoint
from megatron_glmv.inference.score import Task, main

pytestmark = pytest.mark.slow

BF16 = 0.03


def given(path: Path) -> Path:
    """A row with an image of 4 x 6 patches and a row of text."""
    g = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 500, (2, 24), generator=g)
    types = torch.zeros_like(ids)
    types[0, 5:11] = 1
    pixels = torch.randn(24, 3 * 2 * 14 * 14, generator=g)
    tensors = {"input_ids": ids, "mm_token_type_ids": types, "pixel_values": pixels}
    save_file({**tensors, "image_grid_thw": torch.tensor([[1, 4, 6]])}, path)
    return path


def test_a_run_in_bf16_scored_in_both_precisions_and_on_another_layout(tmp_path: Path) -> None:
    make(tmp_path / "set", images=24, clips=2, texts=24, sound=True)
    layout = ("parallel.data=2", "parallel.expert=2")
    run(tmp_path / "set" / "shards", tmp_path / "run", *layout, "precision=bf16", "train.steps=6")
    checkpoint = open_checkpoint(tmp_path / "run")
    assert checkpoint.manifest.optimizer and checkpoint.tensors["language.output_layer.weight"].dtype == torch.bfloat16

    def score(name: str, *overrides: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
        out, grads = tmp_path / f"{name}.safetensors", tmp_path / f"{name}-grads.safetensors"
        task = Task(tmp_path / "run", given(tmp_path / "x.safetensors"), out, logits=True, grads=grads)
        summary = main(task, overrides)
        assert summary["step"] == 6
        return load_file(out), load_file(grads), summary["mean_nll"]

    scores, gradients, nll = score("fp32", "precision=fp32")
    others, other_gradients, _ = score("tp2", "precision=fp32", "parallel.tensor=2")
    assert ((scores["logits"] - others["logits"]).abs() / scores["logits"].abs().clamp(min=1)).max() <= LOGITS
    assert compare(other_gradients, gradients) > 0
    low, low_gradients, low_nll = score("bf16")
    difference = (scores["logprobs"] - low["logprobs"]).abs().max().item()
    assert 1e-4 < difference < BF16
    assert abs(nll - low_nll) < BF16
    assert low_gradients.keys() == gradients.keys()
    head = "lm_head.weight"
    assert (low_gradients[head] - gradients[head]).norm() < BF16 * gradients[head].norm()

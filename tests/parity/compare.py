"""Agreement of `glmv score` with the reference. Bounds and why: test_parity.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from megatron_glmv.inference.score import Task, main

if TYPE_CHECKING:
    from parity.conftest import Reference

LOGITS, GRADIENTS = 2e-5, 1e-4


def score_and_compare(
    reference: Reference, model: str, case: str, folder: Path, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs one case under a layout; returns the largest differences, which are within the bounds, and the layout."""
    out, grads = folder / "out.safetensors", folder / "grads.safetensors"
    summary = main(Task(reference.ckpt(model), reference.input(case), out, logits=True, grads=grads), overrides)
    x, theirs, ours = load_file(reference.input(case)), reference.outputs(model, case), load_file(out)
    real = x["attention_mask"].bool()
    assert torch.equal(ours["position_ids"], theirs["position_ids"])
    expected = theirs["logits"][real]
    logits = ((ours["logits"][real] - expected).abs() / expected.abs().clamp(min=1)).max().item()
    assert logits <= LOGITS
    assert not ours["logits"][~real].any() and not ours["logprobs"][~(real[:, :-1] & real[:, 1:])].any()
    pairs = real[:, :-1] & real[:, 1:]
    expected = theirs["logits"][:, :-1].log_softmax(-1).gather(-1, x["input_ids"][:, 1:, None])[..., 0][pairs]
    assert ((ours["logprobs"][pairs] - expected).abs() / expected.abs().clamp(min=1)).max() <= LOGITS
    assert summary["tokens"] == int(pairs.sum())
    assert abs(summary["mean_nll"] - reference.report["models"][model]["cases"][case]["nll"]) <= 1e-5
    worst = compare(load_file(grads), reference.gradients(model, case))
    return {"logits": logits, "gradients": worst, "layout": summary["layout"]}


def compare(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest relative difference in the norm of a tensor; a tensor of zeros has to be that on both sides."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, expected in theirs.items():
        found = ours[name]
        assert found.shape == expected.shape and found.dtype == torch.float32, name
        norm = expected.norm().item()
        if norm == 0:
            assert not found.any(), f"{name}: reference has no gradient"
            continue
        difference = (found - expected).norm().item() / norm
        assert difference <= GRADIENTS, f"{name}: {difference:.1e}"
        worst = max(worst, difference)
    return worst

"""Pre-training goes on from a text model and an encoder that were imported together, and ends in a model of GLM's form.

What is shown: the import of GLM-4.5-Air's and AIMv2's layout is a start like any other for `glmv train` on two ranks,
at a learning rate of zero what comes out is the weights that went in, bit by bit, and with a rate they train from the
same first loss. Not covered: that such a start is a good one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from convert.conftest import run_apart, tensors_of
from convert.test_convert import exported
from data.small_set import make
from faults.training import metrics, run

from megatron_glmv.checkpoint.hf.importing import ImportOptions, import_hf
from megatron_glmv.checkpoint.hf.rows import open_rows
from megatron_glmv.checkpoint.hf.start import StartOptions

STARTING = Path(__file__).with_name("starting.py")


def overrides(model: dict[str, Any], at: str = "model") -> list[str]:
    """The imported model, spelled as options of `glmv train`."""
    out: list[str] = []
    for name, value in model.items():
        if isinstance(value, dict):
            out += overrides(value, f"{at}.{name}")
        elif name != "name":
            text = "null" if value is None else str(list(value)).replace(" ", "") if isinstance(value, tuple) else value
            out.append(f"{at}.{name}={text}")
    return out


@pytest.mark.slow
def test_two_ranks_train_on_from_air_and_aimv2(tmp_path: Path) -> None:
    run_apart(STARTING, tmp_path / "sources")
    make(tmp_path / "set", images=24, clips=2, texts=24, sound=True)
    start = StartOptions(tmp_path / "sources" / "air", tmp_path / "sources" / "aimv2")
    import_hf(ImportOptions(start, tmp_path / "start", tokenizer=tmp_path / "set" / "tokenizer"))
    model = open_rows(tmp_path / "start").model
    common = [*overrides(asdict(model)), f"init_from={tmp_path / 'start'}", "train.steps=3", "checkpoint.every=3"]
    layout = ["parallel.tensor=2", "train.seed=3"]
    before = tensors_of(exported(tmp_path / "start", tmp_path / "a"))

    run(tmp_path / "set" / "shards", tmp_path / "still", *common, *layout, "optim.lr=0", "optim.min_lr=0")
    still = tensors_of(exported(tmp_path / "still", tmp_path / "b"))
    held = {name for name in before if "e_score_correction_bias" not in name}
    assert all(torch.equal(before[name], still[name]) for name in held)

    run(tmp_path / "set" / "shards", tmp_path / "moved", *common, *layout)
    moved = tensors_of(exported(tmp_path / "moved", tmp_path / "c"))
    assert sum(not torch.equal(before[name], moved[name]) for name in held) > 0.9 * len(held)
    losses = [line["loss"] for line in metrics(tmp_path / "moved")]
    frozen = [line["loss"] for line in metrics(tmp_path / "still")]
    assert losses[0] == frozen[0] and losses[-1] < frozen[-1]

"""The reference, run once for all tests of this folder in a process of its own, and its models as our checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import CASES, MODELS, inputs
from parity.checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

REFERENCE = Path(__file__).with_name("reference.py")


@dataclass(frozen=True)
class Reference:
    """What transformers answered."""

    folder: Path
    report: dict[str, Any]

    def input(self, case: str) -> Path:
        return self.folder / "inputs" / f"{case}.safetensors"

    def hf(self, model: str) -> Path:
        """The checkpoint that transformers wrote."""
        return self.folder / model / "hf"

    def ckpt(self, model: str) -> Path:
        """The same weights as a checkpoint of ours; made when it is first asked for."""
        made = self.folder / model / "ours"
        if not made.exists():
            make_checkpoint(self.hf(model), made)
        return made

    def outputs(self, model: str, case: str) -> dict[str, torch.Tensor]:
        """logits [B, S, W], position_ids [3, B, S]."""
        return load_file(self.folder / model / f"{case}.safetensors")

    def gradients(self, model: str, case: str) -> dict[str, torch.Tensor]:
        """By name on disk; buffers left out."""
        found = load_file(self.folder / model / f"{case}-grads" / "model.safetensors")
        return {name: value for name, value in found.items() if not name.endswith("e_score_correction_bias")}


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    job = tmp_path_factory.mktemp("reference")
    (job / "inputs").mkdir()
    for name, case in CASES.items():
        save_file(inputs(case), job / "inputs" / f"{name}.safetensors")
    models = {name: {**model, "cases": list(CASES)} for name, model in MODELS.items()}
    (job / "job.json").write_text(json.dumps({"models": models}))
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(REFERENCE), str(job)], env={**os.environ, **offline}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]
    return Reference(job, json.loads((job / "report.json").read_text()))

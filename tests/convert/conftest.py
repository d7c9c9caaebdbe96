"""What transformers wrote, and what it reads of ours: each once for all tests, in a process that cannot import ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import CASES, MODELS, inputs
from parity.conftest import REFERENCE, Reference
from safetensors.torch import load_file, save_file

RELOAD = Path(__file__).with_name("reload.py")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
CASE, IMAGES = "mixture", "right"
"""Of parity/cases.py: images and videos, padding left; images alone, padding right."""


def run_apart(script: Path, job: Path) -> None:
    done = subprocess.run([sys.executable, str(script), str(job)], env={**os.environ, **OFFLINE}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-4000:]


def make_reference(job: Path, models: dict[str, Any]) -> Reference:
    (job / "job.json").write_text(json.dumps({"models": models}))
    run_apart(REFERENCE, job)
    return Reference(job, json.loads((job / "report.json").read_text()))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    job = tmp_path_factory.mktemp("written")
    (job / "inputs").mkdir()
    for case in (CASE, IMAGES):
        save_file(inputs(CASES[case]), job / "inputs" / f"{case}.safetensors")
    return make_reference(job, {name: {**model, "cases": [CASE, IMAGES]} for name, model in MODELS.items()})


def reload(job: Path, directories: Sequence[Path], given: Path) -> list[dict[str, Any]]:
    """What transformers makes of each directory: missing, unexpected, mismatched keys, and the logits."""
    job.mkdir(parents=True)
    content = {"directories": [str(path) for path in directories], "input": str(given)}
    (job / "job.json").write_text(json.dumps(content))
    run_apart(RELOAD, job)
    reports: list[dict[str, Any]] = json.loads((job / "report.json").read_text())
    for i, report in enumerate(reports):
        report["logits"] = load_file(job / f"{i}.safetensors")["logits"]
    return reports


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory, by the safetensors library."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def fused(hf: Path, out: Path, end: str = "", files: int = 3) -> Path:
    """A directory with the experts stacked, as transformers has them in memory, in several files with an index."""
    theirs, out_tensors = load_file(hf / "model.safetensors"), {}
    for name, tensor in theirs.items():
        if ".experts." not in name:
            out_tensors[name] = tensor
        elif ".experts.0.gate_proj" in name:
            prefix = name.partition("0.gate_proj")[0]
            count = sum(n.startswith(prefix) and n.endswith("gate_proj.weight") for n in theirs)
            each = [[theirs[f"{prefix}{e}.{x}_proj.weight"] for e in range(count)] for x in ("gate", "up", "down")]
            out_tensors[f"{prefix}gate_up_proj{end}"] = torch.cat([torch.stack(each[0]), torch.stack(each[1])], dim=1)
            out_tensors[f"{prefix}down_proj{end}"] = torch.stack(each[2])
    write_sharded(out, out_tensors, files)
    (out / "config.json").write_bytes((hf / "config.json").read_bytes())
    return out


def write_sharded(out: Path, tensors: dict[str, torch.Tensor], files: int) -> None:
    out.mkdir(parents=True)
    names, weight_map = sorted(tensors), {}
    for i in range(files):
        file = f"model-{i + 1:05d}-of-{files:05d}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[i::files]}
        save_file(part, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

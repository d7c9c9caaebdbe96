"""tools/bench_layers.py: its count of FLOPs against the model's known size, and that it runs where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.tools import load_tool

from megatron_glmv.config.load import compose

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_layers.py"


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_tool("bench_layers")


def test_a_token_costs_twice_the_active_parameters_and_its_attention(tool: Any) -> None:
    """GLM-4.5V is a 106B-A12B model: 45 sparse layers and a dense one of nearly their size, without embeddings."""
    text = compose(["experiment=tiny_pretrain", "model=glm45v", "data.path=unused"]).model.text
    alone = tool.layer_flops(text, 1)  # a sample of one token attends to itself only
    assert 45 * alone / 2 == pytest.approx(11.9e9, rel=0.02)
    # 8,191 more tokens of context, half of them seen on average: 2 products of heads x head_dim each.
    assert tool.layer_flops(text, 8192) - alone == pytest.approx(2 * 2 * 96 * 128 * 8191 / 2)


@pytest.mark.slow
def test_every_recipe_is_timed_in_one_run_and_named_as_emulated_without_a_gpu(tmp_path: Path) -> None:
    sizes = ["--model", "tiny_glm45v", "--tokens", "128", "--segment", "64", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, str(TOOL), *sizes], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [
        line for line in done.stdout.splitlines() if line.startswith(("bf16", "delayed", "tensorwise", "blockwise"))
    ]
    assert len(rows) == 4
    import torch

    if not torch.cuda.is_available():
        assert all("emulated" in row for row in rows[1:]) and "emulated" not in rows[0]

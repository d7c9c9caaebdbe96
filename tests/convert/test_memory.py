"""A tensor of real width that is larger than the memory a conversion may have.

The fused experts of one layer of GLM-4.5V, 64 of its 128: gate and up are one tensor of 1.5 GB, in a sparse file, so
that the source takes no disk. Import and export run as programs with --memory-limit 600MiB under RLIMIT_DATA of 1 GiB
(anonymous memory and whatever else a process may write to). Not covered here: embedding and head, all experts, both
ways of storing them (tools/bench_convert.py).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_glmv.checkpoint.hf.config import model_to_hf
from megatron_glmv.checkpoint.hf.mapping import name_mapping
from megatron_glmv.checkpoint.hf.memory import parse_size
from megatron_glmv.checkpoint.hf.rows import open_rows
from megatron_glmv.checkpoint.hf.safetensors import make_header
from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import ModelConfig

pytestmark = pytest.mark.slow
LIMIT, RLIMIT = "600MiB", 1 << 30
FC1 = "language.decoder.layers.0.mlp.experts.experts.linear_fc1.weight"


def sparse(model: ModelConfig, out: Path) -> int:
    """Zeros, but for each expert's first row, which is its number. Returns the bytes of the largest tensor."""
    out.mkdir()
    theirs = name_mapping(model, "fused").theirs
    kinds = {n: (torch.float32 if t.exact else torch.bfloat16, t.shape) for n, t in theirs.items()}
    kinds = dict(sorted(kinds.items(), key=lambda item: -item[1][0].itemsize))
    header = make_header(kinds)
    with (out / "model.safetensors").open("wb") as file:
        file.write(header)
        at, largest = len(header), 0
        for name, (dtype, shape) in kinds.items():
            size = theirs[name].numel * dtype.itemsize
            if name.endswith("gate_up_proj"):
                for expert in range(shape[0]):
                    file.seek(at + expert * size // shape[0])
                    row = torch.full((shape[2],), float(expert), dtype=dtype)
                    file.write(row.view(torch.uint8).numpy().tobytes())
            at, largest = at + size, max(largest, size)
        file.truncate(at)
    (out / "config.json").write_text(json.dumps(model_to_hf(model)))
    return largest


def convert(*arguments: str) -> tuple[int, int]:
    """Under the limits. Bytes of memory: what it said it would take, what it said it took."""
    command = ["prlimit", f"--data={RLIMIT}", sys.executable, "-m", "megatron_glmv.cli", "convert", *arguments]
    done = subprocess.run([*command, "--memory-limit", LIMIT, "--workers", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    match = re.search(r"memory (\S+ \S+) at most \(expected (\S+ \S+)\)", done.stdout)
    assert match, done.stdout
    return parse_size(match[2], "expected"), parse_size(match[1], "measured")


def test_a_tensor_larger_than_the_limit_goes_both_ways(tmp_path: Path) -> None:
    full = compose(["experiment=glm45v_pretrain"]).model
    assert full.text.moe is not None
    text = replace(full.text, layers=1, vocab=512, moe=replace(full.text.moe, experts=64, first_dense=0))
    model = replace(full, text=text, vision=replace(full.vision, depth=1))
    assert sparse(model, tmp_path / "hf") > 2 * parse_size(LIMIT, "")
    for arguments in (
        ["import", "--hf", str(tmp_path / "hf"), "--out", str(tmp_path / "ours"), "--without-tokenizer"],
        ["export", "--ckpt", str(tmp_path / "ours"), "--out", str(tmp_path / "back")],
    ):
        expected, measured = convert(*arguments)
        assert 100 << 20 < measured <= expected <= parse_size(LIMIT, "")
    ours, back = open_rows(tmp_path / "ours"), open_rows(tmp_path / "back")
    row = torch.empty(1, text.hidden, dtype=torch.bfloat16)
    for side in (ours, back):
        for expert in (0, 17, 63):
            side.read(FC1, expert * 2 * 1408, row)
            assert (row == expert).all()

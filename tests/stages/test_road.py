"""tools/road.py in its shortest form: three stages on three layouts. What the long form learns is in docs/stages.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_glmv.data.stage_sets.domains import EASY

ROAD = Path(__file__).parents[2] / "tools" / "road.py"


@pytest.mark.slow
def test_the_road_lowers_the_validation_loss_in_every_stage_and_prints_both_tables(tmp_path: Path) -> None:
    short = ["--samples", "300", "--steps", "8", "4", "8", "--pack-tokens", "768", "1536", "768", "--limit", "1"]
    short += ["--ask", "pretrain", "sft"]
    short += ["--workers", "0"]
    command = [sys.executable, str(ROAD), "--data", "demo", "--out", "road", "--model", "tiny_glm45v", *short]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "road" / "road.json").read_text())["tiny_glm45v"]
    assert set(found["val_loss"]) == {"pretrain", "longcontext", "sft"}
    easy = set(EASY) - {"document", "video"}
    assert set(found["val_loss"]["pretrain"]) == {"all", "image", "text", *easy}
    # each held-out set is smaller than its eight packs: none of its samples is left out, the one text neither
    assert set(found["val_loss"]["longcontext"]) == {"all", "image", "text", "video", "pages", *EASY}
    for stage, domains in found["val_loss"].items():
        first, last = domains["all"]  # four steps need not lower each domain
        assert last < first, stage
    for mode in ("think", "nothink"):
        assert set(found["eval"][mode]) == {"pretrain", "sft"}
        assert set(found["eval"][mode]["sft"]["domains"]) == set(EASY)
        assert set(found["eval"][mode]["sft"]["form"]) == {"well_formed", "one_thought", "empty_thought", "one_box"}
    layouts = [
        json.loads((tmp_path / "road" / "tiny_glm45v" / stage / "checkpoints" / "best" / "manifest.json").read_text())
        for stage in ("pretrain", "longcontext", "sft")
    ]
    sizes = [
        {axis: manifest["topology"][axis] for axis in ("tensor", "context", "pipeline", "expert")}
        for manifest in layouts
    ]
    assert [{axis for axis, size in one.items() if size == 2} for one in sizes] == [
        {"tensor"},
        {"context"},
        {"pipeline", "expert"},
    ]
    assert "| replies with empty thought |" in done.stdout and "domains rose from" in done.stdout

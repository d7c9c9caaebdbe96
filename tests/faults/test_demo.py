"""`make demo` in small: the same program, fewer samples and steps. What it learns in full is for the demo to show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "tools" / "demo.py"


def demo(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO), *arguments], cwd=cwd, capture_output=True, text=True, timeout=900, env=os.environ
    )


def attempts_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_demo_trains_on_two_layouts_asks_and_reports(tmp_path: Path) -> None:
    short = ("--samples", "400", "--steps", "6", "--four-ranks", "3", "--limit", "2")
    short += ("--noisy-steps", "2", "--rlcs-steps", "2", "--long", "60", "2", "--sft", "60", "2")
    done = demo(tmp_path, *short)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "demo"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [(a["world"], a["step_in"], a["step_out"]) for a in attempts_of(run)] == [(4, 0, 3), (2, 3, 6)]
    for shown in ("tensor 2, pipeline 2, expert 2", "above chance", "shuffled", "cycle_next", "report.html"):
        assert shown in done.stdout
    assert (run / "report.html").stat().st_size > 10_000
    lines = [json.loads(line) for line in (tmp_path / "runs" / "demo_rlcs" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2] and "heldout_reward" in lines[0] and "loss" not in lines[0]
    assert "Reinforcement learning" in (tmp_path / "runs" / "demo_rlcs" / "report.html").read_text()
    for stage, world in {"longcontext": 2, "sft": 4, "rlcs": 2}.items():
        (attempt,) = attempts_of(run.with_name(f"demo_{stage}"))
        assert (attempt["world"], attempt["step_out"], attempt["exit_code"]) == (world, 2, 0), stage
        assert (run.with_name(f"demo_{stage}") / "report.html").is_file()
    assert re.search(r"demo_sft: val_loss [0-9.]+ \(step 1\) -> [0-9.]+ \(step 2\)", done.stdout)
    assert re.search(r"demo_rlcs: heldout_reward [0-9.]+ \(step 0\) -> [0-9.]+ \(step 2\)", done.stdout)
    again = demo(tmp_path, *short)
    assert again.returncode == 0 and "found data_cache/demo" in again.stdout
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6

    failed = demo(tmp_path, "--data", "elsewhere", "--samples", "-1")
    assert failed.returncode not in (0, None) and "the demo set" in failed.stderr

"""The benchmark of the encoder's work runs, and its two ways do as different amounts of it as they should.

Derivation. Replicated, each of tensor x context = 4 ranks encodes all patches. Spread, whole frames are dealt by cost,
so that the rank with most has a quarter and at most the largest frame more: of 12 images of 144 patches (four of them
half of that) 36, 36, 36 and 36 hundredths of 1440 are possible, 0.25. The goal is 0.30. Patches are counted where they
enter the encoder and are the same in every run; times are printed, and on a busy machine say nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "bench_encoder.py"
GOAL = 0.30


@pytest.mark.slow
def test_spread_work_is_a_fraction_of_replicated_work() -> None:
    small = ["--images", "12", "--side", "168", "--repeats", "1"]
    command = [sys.executable, str(PROGRAM), *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^(replicated|spread|ratio) +([\d.]+)", done.stdout, re.MULTILINE))
    assert int(rows["replicated"]) == 12 * 144 - 4 * 72, done.stdout  # every rank encodes all of them
    assert 0.25 <= float(rows["ratio"]) <= GOAL, done.stdout
    assert int(rows["spread"]) == round(float(rows["ratio"]) * int(rows["replicated"]))

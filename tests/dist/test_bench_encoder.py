"""The benchmark of the encoder's work runs, and its two ways do different amounts of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "tools" / "bench_encoder.py"


@pytest.mark.slow
def test_spread_work_is_a_fraction_of_replicated_work() -> None:
    """CPU seconds, which a busy machine changes little. 0.25 at best; the bound allows for small sizes."""
    small = ["--images", "12", "--side", "168", "--repeats", "2"]
    command = [sys.executable, str(PROGRAM), *small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.search(r"ratio\s+([\d.]+)\s+([\d.]+)", done.stdout)
    assert found and float(found[2]) < 0.6, done.stdout

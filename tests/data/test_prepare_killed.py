"""A preparation that is killed with SIGKILL at random moments, and started again each time, ends in the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data.caption_server import serving

SCRIPT = Path(__file__).with_name("killed_prepare.py")


@pytest.mark.parametrize("kills", [6, pytest.param(12, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_in_the_same_bytes(tmp_path: Path, kills: int) -> None:
    with serving() as server:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path), server.url, "7", str(kills)], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["struck"] == kills
    assert figures["files"] > 100
    assert len(figures.keys() & {"scan", "whole", "write", "finish"}) >= 3, "kills fell into most phases"

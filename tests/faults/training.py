"""Real runs of `glmv train` on a small data set, as a user starts them, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TIMES = {"step_time_s", "data_wait_s"}
"""The only fields that may differ between two equal runs."""
SMALL = [
    "experiment=tiny_pretrain",
    "model.text.layers=2",
    "model.vision.depth=1",
    "data.pack_tokens=512",
    "data.image_min_pixels=6272",
    "data.image_max_pixels=25088",
    "data.val_path=",
    "data.log_samples=true",
    "train.steps=10",
    "train.global_batch=2",
    "checkpoint.every=5",
]


class Training:
    """`glmv train` in a run directory, in a process group of its own."""

    def __init__(self, data: Path, run_dir: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "megatron_glmv.cli",
            "train",
            *SMALL,
            f"data.path={data}",
            f"run_dir={run_dir}",
        ]
        self.run_dir = run_dir
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def finish(self, timeout: float = 240) -> tuple[int, str]:
        """Exit code and output. Nothing of the run is left when this returns, whatever happened."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
            return self.process.returncode, output
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait_for_step(self, step: int, timeout: float = 240) -> None:
        deadline = time.monotonic() + timeout
        while len(metrics(self.run_dir)) < step:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"never came to step {step}:\n{self.finish(1)[1]}")
            time.sleep(0.01)

    def rank_pids(self) -> list[int]:
        ranks = json.loads((self.run_dir / "ranks.json").read_text())
        return [ranks[str(rank)]["pid"] for rank in range(len(ranks))]


def run(data: Path, run_dir: Path, *options: str) -> str:
    """A run that must end well; its output."""
    code, output = Training(data, run_dir, *options).finish()
    assert code == 0, output
    return output


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def samples(run_dir: Path) -> list[Any]:
    return [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in _state(pid)]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"

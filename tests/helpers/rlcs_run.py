"""Whole runs of `stage=rlcs` from a random model that can answer (answering.py), in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from helpers.answering import answering_config

from megatron_glmv.config.load import to_json
from megatron_glmv.config.rl import CurriculumConfig, RLConfig
from megatron_glmv.config.schema import Config, OptimConfig, StageConfig, TrainConfig

TIMES = {"step_time_s", "data_wait_s", "judge_s"}
PROMPTS = "prompts.jsonl"


def write_prompts(start: Path, video_at: int | None = None) -> Path:
    """Sixteen prompts of two tasks, every other one with a picture, beside the run directory's media."""
    lines = []
    for n in range(16):
        media = [{"type": "image", "image": f"data/media/{'abc'[n % 3]}.png"}] if n % 2 else []
        media = [{"type": "video", "video": "data/media/v.webm"}] if n == video_at else media
        content = [*media, {"type": "text", "text": f"How many are there? {n}"}]
        task, domain = ("count", "image") if n % 2 else ("sum", "text")
        messages = [{"role": "user", "content": content}]
        lines.append({"id": f"p{n}", "task": task, "domain": domain, "answer": "3", "messages": messages})
    (start / PROMPTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return start / PROMPTS


def rlcs_config(start: Path, run_dir: Path, steps: int, *, rate: float = 1e-3, head_dim: int = 16, **rl: Any) -> Config:
    """From the checkpoint and prompts in `start`: four groups of four answers an iteration, random rewards; `rl` are
    further options of RLConfig."""
    given = RLConfig(
        prompts=str(start / PROMPTS),
        groups=4,
        group_size=4,
        max_new_tokens=8,
        random_rewards=True,
        curriculum=CurriculumConfig(grade=2),
    )
    base = answering_config(run_dir, head_dim=head_dim)
    return replace(
        base,
        stage=StageConfig(name="rlcs"),
        data=replace(base.data, tokenizer=str(start / "data" / "tokenizer"), val_path=""),
        optim=OptimConfig(lr=rate, min_lr=rate, warmup_steps=0),
        train=TrainConfig(steps=steps, seed=5),
        checkpoint=replace(base.checkpoint, every=2),
        rl=replace(given, **rl),
        init_from=str(start / "checkpoints" / "step_3"),
    )


class Run:
    """What a Slurm job's ranks run of a config, in a process group of its own."""

    def __init__(self, config: Config) -> None:
        self.run_dir = Path(config.run_dir)
        self.run_dir.mkdir(exist_ok=True)
        given = self.run_dir.with_suffix(".yaml")
        given.write_text(yaml.safe_dump(to_json(config)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "megatron_glmv.cli.frozen", str(given), config.run_dir],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ended(self, timeout: float = 300) -> tuple[int, str]:
        """Exit code and output. Nothing of the run is left."""
        try:
            output, _ = self.process.communicate(timeout=timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.returncode, output

    def finish(self) -> str:
        code, output = self.ended()
        assert code == 0, output
        return output

    def kill_after(self, step: int) -> None:
        deadline = time.monotonic() + 300
        while not records(self.run_dir) or records(self.run_dir)[-1]["step"] < step:
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.communicate()[0]
            time.sleep(0.01)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def records(run_dir: Path, *left_out: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """Whole lines, without what may differ between two equal runs."""
    path = run_dir / name
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in line.items() if key not in TIMES | {*left_out}} for line in found]

"""Where a run's numbers are shown: TensorBoard, Weights & Biases (offline), MLflow (local files).

metrics.jsonl is the record; sinks are views of it, chosen by `tracking.sinks`, and written by one rank. Nothing leaves
the machine: W&B writes a directory that `wandb sync` uploads if one wants to, MLflow a local store.
Each library is imported when its sink is asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.types import Json

MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The library of each sink."""
RECORDED = ("megatron-core", "torch", "numpy", "transformer-engine", "nvidia-dali-cuda120")
"""Packages whose versions are part of what a run is."""


class Sink(Protocol):
    def describe(self, run: Json) -> None:
        """Once, at the start of a run or of its continuation: {config, code, environment, data} (`description`)."""

    def step(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    def __init__(self, run_dir: Path, first_step: int) -> None:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        # A continued run shadows what an earlier attempt wrote after the checkpoint it starts from.
        self._writer: Any = writer(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def describe(self, run: Json) -> None:
        for name, value in run.items():
            lines = [f"    {k}: {v}" for k, v in flat(value).items()] if isinstance(value, dict) else [str(value)]
            self._writer.add_text(name, "\n".join(lines), 0)

    def step(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    def __init__(self, run_dir: Path, first_step: int) -> None:
        wandb = importlib.import_module("wandb")
        # A run offline cannot be appended to: each attempt is a run of one group.
        self._run: Any = wandb.init(
            mode="offline",
            dir=str(run_dir),
            project="megatron_glmv",
            group=run_dir.resolve().name,
            name=f"{run_dir.resolve().name}-from-{first_step}",
            settings=wandb.Settings(console="off", disable_git=True, silent=True),
        )

    def describe(self, run: Json) -> None:
        self._run.config.update(run)

    def step(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    def __init__(self, run_dir: Path, first_step: int) -> None:
        tracking = importlib.import_module("mlflow.tracking")
        store = (run_dir.resolve() / "mlflow").as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for it
        self._client: Any = tracking.MlflowClient(tracking_uri=store)
        known = self._client.get_experiment_by_name("megatron_glmv")
        where = known.experiment_id if known else self._client.create_experiment("megatron_glmv")
        name = f"{run_dir.resolve().name}-from-{first_step}"
        self._id: str = self._client.create_run(where, run_name=name).info.run_id

    def describe(self, run: Json) -> None:
        for name, value in flat(run).items():
            self._client.log_param(self._id, name.replace("[", "_").replace("]", ""), str(value)[:500])

    def step(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


KINDS: dict[str, type[Any]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def require(names: Sequence[str]) -> None:
    """Raises ConfigError for a sink whose library is not installed, naming how to get it."""
    for name in names:
        if importlib.util.find_spec(MODULES[name]) is None:
            fix = "pip install 'megatron_glmv[tracking]', or take it out of tracking.sinks"
            raise ConfigError("tracking.sinks", list(names), f"{MODULES[name]} is not installed", fix)


def open_sinks(names: Sequence[str], run_dir: Path, first_step: int) -> list[Sink]:
    """The sinks of a run that continues behind `first_step`. Raises ConfigError (see `require`)."""
    require(names)
    return [KINDS[name](run_dir, first_step) for name in names]


def numbers(record: Json) -> dict[str, float]:
    """What a sink is given of a line of metrics.jsonl."""
    return {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float) and not isinstance(v, bool)}


def flat(tree: Json, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def data_fingerprint(place: Path) -> str:
    """Of a file, or of a directory of shards: sha256 over names and sizes of its files and the content of its index
    files, short. Reads no media."""
    digest = hashlib.sha256()
    for path in [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(place)} {path.stat().st_size}\n".encode())
        if path.suffix in (".json", ".jsonl", ".idx") and path.stat().st_size < 1 << 24:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def code_version() -> str:
    """The package's version, with the commit and `modified` where it runs from a git work tree."""
    here = Path(__file__).resolve().parent
    version = metadata.version("megatron_glmv")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
        return f"{version} commit {git('rev-parse', 'HEAD')}{' modified' if changed else ''}"
    except (OSError, subprocess.SubprocessError):
        return version


def description(config: Json, data: str) -> Json:
    """What a run is: its config, the code, the environment, and the data by fingerprint."""
    versions = {}
    for name in RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    environment = {"python": sys.version.split()[0], "system": platform.platform(), "packages": versions}
    return {"config": config, "code": code_version(), "environment": environment, "data": data}

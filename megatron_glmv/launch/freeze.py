"""What a job will run, copied at submission: editing the checkout while the job waits changes nothing.

    RUN_DIR/submissions/001/   config.yaml (of a sweep: members/N.yaml), code/ (this package), job.sbatch, rank.sh,
                               requirements.lock, submission.json

Python starts with `-P` and code/ first on its path, so neither the directory it starts in nor an editable install wins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

import megatron_glmv
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import to_yaml
from megatron_glmv.config.schema import Config

PACKAGE = Path(megatron_glmv.__file__).resolve().parent


def scripts_dir() -> Path:
    """The directory of job.sbatch: inside the package when installed from a wheel, else at the top of the checkout."""
    for place in (PACKAGE / "slurm", PACKAGE.parent / "slurm"):
        if (place / "job.sbatch").is_file():
            return place
    raise ConfigError("slurm", str(PACKAGE), "the package was installed without its job script", "reinstall it")


def next_submission(run_dir: Path) -> Path:
    """The directory of the next submission of a run; not made."""
    numbers = [int(path.name) for path in (run_dir / "submissions").glob("[0-9][0-9][0-9]")]
    return run_dir / "submissions" / f"{max(numbers, default=0) + 1:03d}"


def freeze(directory: Path, config: str, members: Mapping[int, Config] | None = None) -> None:
    """Writes a submission. `config`: the text of config.yaml. `members`: of a sweep, by index; then `config` is only
    recorded for its cluster."""
    directory.mkdir(parents=True)
    (directory.parents[1] / "logs").mkdir(exist_ok=True)
    shutil.copytree(PACKAGE, directory / "code" / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for script in scripts_dir().iterdir():
        if script.is_file():
            shutil.copy2(script, directory / script.name)
    (directory / "config.yaml").write_text(config)
    for index, member in (members or {}).items():
        (directory / "members").mkdir(exist_ok=True)
        (directory / "members" / f"{index}.yaml").write_text(to_yaml(member))
    (directory / "requirements.lock").write_text(lock())
    about = {
        "version": megatron_glmv.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "edited": bool(_git("status", "--porcelain", "--", PACKAGE.name)),
        "code_sha256": digest(directory / "code"),
        "submitted": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (directory / "submission.json").write_text(json.dumps(about, indent=1) + "\n")


def lock() -> str:
    """name==version of every distribution of this interpreter."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name)


def digest(directory: Path) -> str:
    """sha256 over names and contents of the files below a directory."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(directory).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(PACKAGE.parent), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None

"""A conversion as a step of a pipeline: `glmv convert import` before the first stage, `export` behind one. A job on
the CPUs of one node; what it is to do is frozen as an argument list."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from megatron_glmv.config.cluster import ClusterConfig
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.launch.freeze import freeze, next_submission
from megatron_glmv.launch.job import Job, Shape
from megatron_glmv.launch.submit import Options, record

OPTIONS = {
    "import": {
        **dict.fromkeys(("hf", "text", "vision", "tokenizer"), "directory"),
        **dict.fromkeys(("rope_theta", "merger_ffn", "seed", "workers"), "number"),
        **dict.fromkeys(("without_tokenizer", "allow_rounded_bias", "mtp"), "flag"),
        **dict.fromkeys(("out", "patch_init", "memory_limit"), "text"),
    },
    "export": {
        "assets": "directory",
        "workers": "number",
        "verify": "flag",
        **dict.fromkeys(("out", "dtype", "max_shard_size", "memory_limit"), "text"),
    },
}
"""Those of `glmv convert`, but for what an export takes: that is the stage before it. A directory has to be there when
the pipeline is submitted."""
NUMBER = re.compile(r"[0-9]+([.][0-9]+)?(e[+-]?[0-9]+)?")
MADE = {"import": "model", "export": "hf"}
"""Directory in the step's own, where no `out` is given."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Decided, nothing written."""

    job: Job
    arguments: tuple[str, ...]
    """Of `glmv convert`."""
    out: Path

    def freeze(self) -> None:
        freeze(self.job.submission, yaml.safe_dump({"convert": list(self.arguments)}))

    def behind(self, job: str) -> Conversion:
        """The same, to start when `job` has ended well."""
        return dataclasses.replace(self, job=dataclasses.replace(self.job, after=(*self.job.after, job)))

    def send(self) -> str:
        """Freezes, submits, and returns the job's number."""
        self.freeze()
        return record(self.job)


def prepare_conversion(
    label: str,
    command: str,
    settings: Mapping[str, str],
    cluster: ClusterConfig,
    run_dir: Path,
    ckpt: Path | None,
    options: Options,
) -> Conversion:
    """`settings`: options of `glmv convert COMMAND` by name; `ckpt`: what an export converts. Raises ConfigError."""
    given = {name: _checked(command, name, value) for name, value in settings.items()}
    out = Path(given.pop("out", "") or run_dir / MADE[command]).absolute()
    given.setdefault("workers", str(cluster.cpus_per_rank))
    if ckpt is not None:
        given["ckpt"] = str(ckpt)
    arguments = [command, "--out", str(out)]
    for name, value in given.items():
        if OPTIONS[command].get(name) != "flag":
            arguments += [f"--{name.replace('_', '-')}", value]
        elif value == "true":
            arguments.append(f"--{name.replace('_', '-')}")
    job = Job(
        name=label,
        shape=Shape(1, 1),
        cluster=on_cpus(cluster),
        run_dir=run_dir,
        submission=next_submission(run_dir),
        python="python3" if cluster.container != "none" else sys.executable,
        after=options.after,
        hold=options.hold,
    )
    return Conversion(job, tuple(arguments), out)


def _checked(command: str, name: str, value: str) -> str:
    kind = OPTIONS[command].get(name)
    if kind is None:
        raise ConfigError(name, value, f"is no option of {command}", f"there are: {', '.join(OPTIONS[command])}")
    if kind == "flag" and value.lower() not in ("true", "false"):
        raise ConfigError(name, value, "is neither true nor false")
    if kind == "number" and not NUMBER.fullmatch(value):
        raise ConfigError(name, value, "is not a number")
    if kind == "directory":
        value = str(Path(value).absolute())
        if not Path(value).is_dir():
            raise ConfigError(name, value, "there is no such directory")
    return value.lower() if kind == "flag" else value


def on_cpus(cluster: ClusterConfig) -> ClusterConfig:
    """Part of one node, without its GPUs and what binds ranks to them."""
    return dataclasses.replace(
        cluster,
        nodes=1,
        ranks_per_node=1,
        gpus_per_node=0,
        exclusive=False,
        launcher="srun",
        bind=(),
        numa_of_rank=(),
        nic_of_rank=(),
        preflight=False,
    )

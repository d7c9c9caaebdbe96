"""A job as a typed value, and that value as the argument list of sbatch. No shell and no template takes part."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from megatron_glmv.config.cluster import ClusterConfig
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.layout import expert_tensor_of, resolve_sizes
from megatron_glmv.config.schema import Config, ParallelConfig
from megatron_glmv.launch.fields import check, check_name, check_path

DEPENDENCY = re.compile(r"[0-9]{1,12}(_[0-9]{1,6})?")


@dataclass(frozen=True)
class Shape:
    """Nodes, and ranks on each of them."""

    nodes: int
    ranks_per_node: int

    @property
    def world(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass(frozen=True, kw_only=True)
class Job:
    """One sbatch call."""

    name: str
    shape: Shape
    cluster: ClusterConfig
    run_dir: Path
    """Of a sweep: the directory that holds the members'."""
    submission: Path
    """What was frozen for it (launch/freeze.py)."""
    python: str
    """The interpreter on the nodes, or in the container."""
    members: tuple[int, ...] | None = None
    """Indices of a sweep's members; None: a single run."""
    after: tuple[str, ...] = ()
    """Jobs that have to end well first."""
    hold: bool = False

    def __post_init__(self) -> None:
        check(self.cluster)
        check_name("experiment", self.name)
        for option, path in (("run_dir", self.run_dir), ("run_dir", self.submission), ("python", Path(self.python))):
            check_path(option, str(path))
        for job in self.after:
            if not DEPENDENCY.fullmatch(job):
                raise ConfigError("--after", repr(job), "is not a job number")


def shape_of(config: Config) -> Shape:
    """Nodes and ranks that a config's layout and cluster make together. Raises ConfigError."""
    cluster = config.cluster
    if cluster.nodes is not None and config.parallel.data is None:
        return Shape(cluster.nodes, cluster.ranks_per_node)
    world = _smallest(config.parallel)
    if cluster.nodes is None and world <= cluster.ranks_per_node:
        return Shape(1, world)
    nodes = cluster.nodes or -(-world // cluster.ranks_per_node)
    if world % nodes or world // nodes > cluster.ranks_per_node:
        raise ConfigError(
            "cluster.nodes", nodes, f"cannot share the layout's {world} ranks evenly, at most {cluster.ranks_per_node} "
            "on each", "change cluster.nodes, cluster.ranks_per_node or parallel.data",
        )  # fmt: skip
    return Shape(nodes, world // nodes)


def _smallest(parallel: ParallelConfig) -> int:
    """The ranks of a layout; where `data` is open, with the smallest that its experts fit. Raises ConfigError."""
    most = 1 if parallel.data is not None else parallel.expert * expert_tensor_of(parallel)
    for data in range(1, most):
        with contextlib.suppress(ConfigError):
            return resolve_sizes(dataclasses.replace(parallel, data=data), None).world
    return resolve_sizes(parallel if most == 1 else dataclasses.replace(parallel, data=most), None).world


def sbatch_options(job: Job) -> list[str]:
    """The options of sbatch, without the script. To requeue is the script's, by exit code; Slurm's for lost nodes."""
    cluster, log = job.cluster, "slurm-%A_%a.log" if job.members is not None else "slurm-%j.log"
    tasks = job.shape.ranks_per_node if cluster.launcher == "srun" else 1
    cpus = cluster.cpus_per_rank * (1 if cluster.launcher == "srun" else job.shape.ranks_per_node)
    gpus = min(cluster.gpus_per_node, job.shape.ranks_per_node)
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.shape.nodes}",
        f"--ntasks-per-node={tasks}",
        f"--cpus-per-task={cpus}",
        f"--time={cluster.time}",
        *([f"--signal=USR1@{cluster.notice}"] if cluster.notice else []),  # without B: to every process of the step
        "--requeue",
        "--open-mode=append",
        "--kill-on-invalid-dep=yes",  # else what follows a failed job waits for ever
        "--export=NONE",  # nothing of the submitting shell; cluster.environment is the way
        f"--output={job.run_dir}/logs/{log}",
    ]
    options += [f"--gpus-per-node={gpus}"] if gpus else []
    options += ["--exclusive"] if cluster.exclusive else []
    options += [f"--mem={cluster.memory}"] if cluster.memory else []
    for name in ("account", "partition", "qos", "constraint", "reservation", "exclude"):
        value = getattr(cluster, name)
        options += [f"--{name}={value}"] if value else []
    if job.members is not None:
        options.append(f"--array={','.join(map(str, job.members))}%{cluster.array_limit}")
    if job.after:
        options.append("--dependency=" + ",".join(f"afterok:{other}" for other in job.after))
    return options + (["--hold"] if job.hold else []) + list(cluster.extra)


def script_arguments(job: Job) -> list[str]:
    """What slurm/job.sbatch is told, as --name value pairs; it evaluates none of it."""
    cluster = job.cluster
    pairs = [
        ("run-dir", str(job.run_dir)),
        ("submission", str(job.submission)),
        ("python", job.python),
        ("launcher", cluster.launcher),
        ("ranks-per-node", str(job.shape.ranks_per_node)),
        ("max-requeues", str(cluster.max_requeues)),
        ("max-failures", str(cluster.max_failures)),
        ("preflight", "yes" if cluster.preflight else "no"),
        *(("module", module) for module in cluster.modules),
        *(("env", setting) for setting in cluster.environment),
        *(("srun", option) for option in [*cluster.bind, *_pyxis(job)]),
        *(("wrap", word) for word in _apptainer(job)),
    ]
    if cluster.numa_of_rank:
        pairs.append(("env", "GLMV_NUMA_OF_RANK=" + " ".join(map(str, cluster.numa_of_rank))))
    if cluster.nic_of_rank:
        pairs.append(("env", "GLMV_NIC_OF_RANK=" + " ".join(cluster.nic_of_rank)))
    return [word for name, value in pairs for word in (f"--{name}", value)]


def sbatch_argv(job: Job) -> list[str]:
    """The whole call."""
    return ["sbatch", "--parsable", *sbatch_options(job), str(job.submission / "job.sbatch"), *script_arguments(job)]


def _mounts(job: Job) -> list[str]:
    return [f"{job.run_dir}:{job.run_dir}", *(m if ":" in m else f"{m}:{m}" for m in job.cluster.container_mounts)]


def _pyxis(job: Job) -> list[str]:
    if job.cluster.container != "pyxis":
        return []
    return [
        f"--container-image={job.cluster.container_image}",
        f"--container-mounts={','.join(_mounts(job))}",
        f"--container-workdir={job.run_dir}",
        "--no-container-mount-home",
    ]


def _apptainer(job: Job) -> list[str]:
    if job.cluster.container != "apptainer":
        return []
    binds = [word for mount in _mounts(job) for word in ("--bind", mount)]
    gpu = ["--nv"] if job.cluster.gpus_per_node else []
    return ["apptainer", "exec", *gpu, *binds, "--pwd", str(job.run_dir), str(job.cluster.container_image)]

"""Which text may become an argument of sbatch or srun. What isn't listed here is refused, never escaped.

Arguments travel as a list and no shell reads them, so quotes, `$()` and spaces are only characters. What is refused is
what Slurm itself would read another way: a newline, a NUL, a leading dash, and in paths `%`, which its patterns expand,
and what its lists split at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from megatron_glmv.config.cluster import ClusterConfig
from megatron_glmv.config.errors import ConfigError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LIST = rf"{NAME}(,{NAME})*"
PATH = r"/[^\x00-\x1f\x7f%\\]*"
PATTERNS: dict[str, tuple[str, str]] = {
    "name": (NAME, "letters, digits, . _ and -"),
    "account": (NAME, "letters, digits, . _ and -"),
    "partition": (LIST, "names, joined by commas"),
    "qos": (NAME, "letters, digits, . _ and -"),
    "constraint": (r"[A-Za-z0-9][A-Za-z0-9._&|,*()\[\]-]{0,127}", "feature names with & | , ( ) [ ]"),
    "reservation": (LIST, "names, joined by commas"),
    "exclude": (r"[A-Za-z0-9][A-Za-z0-9._,\[\]-]{0,1023}", "node names such as node[3-5,9]"),
    "memory": (r"[0-9]{1,9}[KMGT]?", "a number with K, M, G or T"),
    "time": (r"([0-9]{1,3}-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}", "[days-]hours:minutes:seconds"),
    "container_image": (r"[A-Za-z0-9/][A-Za-z0-9/._:@#+-]{0,1023}", "a path or an image name"),
    "modules": (r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,127}", "module names such as cuda/13.0"),
    "environment": (r"[A-Za-z_][A-Za-z0-9_]{0,127}=[^\x00-\x1f\x7f]{0,4095}", "NAME=VALUE on one line"),
    "bind": (r"--(cpu|gpu|mem)-bind=[A-Za-z0-9._:,=-]{1,1023}", "--cpu-bind=..., --gpu-bind=... or --mem-bind=..."),
    "nic_of_rank": (r"[A-Za-z0-9=^][A-Za-z0-9_:,=^-]{0,255}", "what NCCL_IB_HCA takes"),
    "container_mounts": (r"/[^\x00-\x20\x7f,:%\\]*(:/[^\x00-\x20\x7f,:%\\]*(:(ro|rw))?)?", "SOURCE[:TARGET[:ro]]"),
    "extra": (r"--[a-z][a-z-]{0,63}(=[^\x00-\x1f\x7f]{0,1023})?", "--NAME or --NAME=VALUE"),
}
"""Field of ClusterConfig (each element of a list): the pattern, and its description."""

OURS = frozenset(
    [
        "array",
        "chdir",
        "dependency",
        "error",
        "export",
        "job-name",
        "nodes",
        "ntasks",
        "ntasks-per-node",
        "open-mode",
        "output",
        "parsable",
        "requeue",
        "no-requeue",
        "signal",
        "time",
        "wrap",
        "hold",
        "kill-on-invalid-dep",
        "comment",
    ]
)
"""Options of sbatch that `cluster.extra` may not give again."""


def check(cluster: ClusterConfig) -> None:
    """Raises ConfigError for the first field whose text is refused."""
    for field, value in _texts(cluster):
        pattern, allowed = PATTERNS[field]
        if not re.fullmatch(pattern, value):
            raise ConfigError(f"cluster.{field}", repr(value), "is refused", f"allowed: {allowed}")
    for option in cluster.extra:
        if option.removeprefix("--").partition("=")[0] in OURS:
            raise ConfigError("cluster.extra", option, "is set by glmv submit itself")
    for option, given in (("numa_of_rank", cluster.numa_of_rank), ("nic_of_rank", cluster.nic_of_rank)):
        if given and len(given) != cluster.ranks_per_node:
            raise ConfigError(
                f"cluster.{option}", list(given), f"has to name all {cluster.ranks_per_node} ranks of a node"
            )
    if min(cluster.numa_of_rank, default=0) < 0:
        raise ConfigError("cluster.numa_of_rank", list(cluster.numa_of_rank), "numbers start at 0")
    if (cluster.container == "none") != (cluster.container_image is None):
        raise ConfigError(
            "cluster.container_image",
            cluster.container_image,
            f"does not go with cluster.container={cluster.container}",
        )
    if cluster.notice < 60 and cluster.notice != 0:
        raise ConfigError("cluster.notice", cluster.notice, "is less than the minute Slurm may take", "at least 60")


def check_path(option: str, path: str) -> str:
    """An absolute path that Slurm reads as it is. Raises ConfigError."""
    if not re.fullmatch(PATH, path):
        raise ConfigError(option, repr(path), "cannot be given to Slurm", "no control characters, % or backslash")
    return path


def check_name(option: str, name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ConfigError(option, repr(name), "cannot name a job", "up to 64 letters, digits, . _ and -")
    return name


def _texts(cluster: ClusterConfig) -> Iterator[tuple[str, str]]:
    for field in PATTERNS:
        value = getattr(cluster, field)
        if isinstance(value, tuple):
            yield from ((field, item) for item in value)
        elif value is not None:
            yield field, value

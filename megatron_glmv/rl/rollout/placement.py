"""Where the rollout servers are: from the options, the environment, or the Slurm job they are part of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.rl import ServerConfig

URLS = "GLMV_ROLLOUT_URLS"
SLURM = ("SLURM_JOB_NODELIST_HET_GROUP_1", "SLURM_NODELIST_HET_GROUP_1")
"""Nodes of the second part of a heterogeneous job (`sbatch A : B`); the first part trains."""


def server_urls(config: ServerConfig, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Addresses without a slash at the end, each once. Raises ConfigError where there is none, or one is no address."""
    named = next((environment[name] for name in SLURM if environment.get(name)), "")
    if config.urls:
        found, option = list(config.urls), "rl.server.urls"
    elif environment.get(URLS):
        found, option = environment[URLS].replace(",", " ").split(), URLS
    else:
        found, option = [f"http://{host}:{config.port}" for host in hosts(named)], "rl.server.urls"
    for url in found:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ConfigError(option, parts.hostname or url, "is not the address of a server", "http://HOST:PORT")
    if not found:
        fix = f"give them, or {URLS}, or start servers in the second part of a heterogeneous Slurm job"
        raise ConfigError("rl.server.urls", (), "no rollout server is named", fix)
    return tuple(dict.fromkeys(url.rstrip("/") for url in found))


def hosts(nodelist: str) -> list[str]:
    """Names in a Slurm node list: `a[003-004,9],b1` -> a003, a004, a9, b1. Raises ValueError for what is none."""
    return [name for part in _parts(nodelist) for name in _expand(part)]


def _parts(nodelist: str) -> Iterator[str]:
    depth, part = 0, ""
    for sign in nodelist:
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            yield part
            part = ""
        else:
            part += sign
    if part:
        yield part


def _expand(part: str) -> Iterator[str]:
    match = re.fullmatch(r"([^\[\]]*)(?:\[([0-9,-]+)\](.*))?", part)
    if not match:
        raise ValueError(f"{part!r} is no part of a Slurm node list")
    prefix, ranges, rest = match.groups()
    if ranges is None:
        yield prefix
        return
    for one in ranges.split(","):
        low, _, high = one.partition("-")
        for number in range(int(low), int(high or low) + 1):
            for tail in _expand(rest):
                yield f"{prefix}{number:0{len(low)}d}{tail}"

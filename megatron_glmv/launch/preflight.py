"""Is this allocation fit to train? One process a node looks, before a minute of all its GPUs is spent.

A node at fault is named in `ATTEMPT/bad_node.NAME`: the job script excludes it and requeues. What no other node would
mend (unreadable shards, a full disk, a time limit too short to save in) goes into `ATTEMPT/preflight_failed`, and the
job ends. Nodes meet through files below ATTEMPT, which is itself the check of the shared file system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import yaml

from megatron_glmv.config.load import from_dict
from megatron_glmv.config.schema import Config

MEET_S = 60.0
"""How long nodes wait for one another."""
MAX_SKEW_S = 5.0
"""Difference of clocks. Timestamps of logs and leases of file systems go wrong beyond it."""
SAVE_S = 60.0
"""What must remain of the time limit beyond the notice, at the least."""


@dataclass(frozen=True)
class Place:
    """Where this process stands among the nodes."""

    node: str
    number: int
    nodes: tuple[str, ...]
    attempt: Path


class Unfit(Exception):
    """This node should not be used."""


class Impossible(Exception):
    """No node can run this job."""


def main(run_dir: str, config_file: str, attempt: str) -> int:
    """0 where everything holds. Otherwise 1, with the reason on stdout and in the attempt's directory."""
    config = from_dict(yaml.safe_load(Path(config_file).read_text(encoding="utf-8")))
    place = here(Path(attempt))
    checks: list[tuple[str, Callable[[], str]]] = [
        ("devices", lambda: devices(config)),
        ("shared file system and clocks", lambda: meet(place)),
        ("run directory", lambda: room(Path(run_dir))),
        ("shards", lambda: shards(config)),
        ("prompts", lambda: prompts(config)),
        ("time limit", lambda: limit(config)),
        ("network", lambda: network(place, config)),
    ]
    for name, check in checks:
        began = time.monotonic()
        try:
            print(f"{place.node}: {name}: {check()} ({time.monotonic() - began:.1f} s)", flush=True)
        except Unfit as error:
            print(f"{place.node}: {name}: {error}", flush=True)
            (place.attempt / f"bad_node.{place.node}").write_text(f"{place.node}\n")
            return 1
        except Impossible as error:
            print(f"{place.node}: {name}: {error}", flush=True)
            if place.number == 0:
                (place.attempt / "preflight_failed").write_text(f"preflight: {name}: {error}\n")
            return 1
    return 0


def here(attempt: Path) -> Place:
    """From the variables that srun sets; one node where it did not start us."""
    env = os.environ
    listed = env.get("SLURM_JOB_NODELIST", "")
    nodes = _expand(listed) if listed else (os.uname().nodename,)
    node = env.get("SLURMD_NODENAME", nodes[0])
    return Place(node, int(env.get("SLURM_NODEID", "0")), nodes, attempt)


def _expand(nodelist: str) -> tuple[str, ...]:
    done = subprocess.run(["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True)
    return tuple(done.stdout.split())


def devices(config: Config) -> str:
    """As many GPUs as the cluster's config promises, without uncorrected memory errors."""
    wanted = config.cluster.gpus_per_node
    if not wanted:
        return "no GPU asked for"
    query = ["nvidia-smi", "--query-gpu=index,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        raise Unfit("nvidia-smi is not there") from None
    except subprocess.TimeoutExpired:
        raise Unfit("nvidia-smi did not answer for 60 s") from None
    if done.returncode:
        raise Unfit(f"nvidia-smi ended with code {done.returncode}: {done.stderr.strip()}")
    return judge_devices(done.stdout, wanted)


def judge_devices(listed: str, wanted: int) -> str:
    """`listed`: lines of "index, uncorrected errors" ([N/A] where a card has no ECC)."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line.strip()]
    if len(rows) < wanted:
        raise Unfit(f"{len(rows)} GPUs, {wanted} were promised")
    broken = [row[0] for row in rows if len(row) > 1 and row[1].isdigit() and int(row[1])]
    if broken:
        raise Unfit(f"uncorrected memory errors on GPU {', '.join(broken)}")
    return f"{len(rows)} GPUs"


def meet(place: Place, wait: float = MEET_S) -> str:
    """Every node writes and renames a file, and sees those of all others; what they hold are the nodes' clocks."""
    folder = place.attempt / "preflight"
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{place.node}"
    staged.write_text(f"{time.time()}")
    staged.replace(folder / place.node)
    deadline = time.monotonic() + wait
    while missing := [node for node in place.nodes if not (folder / node).exists()]:
        if time.monotonic() > deadline:
            for node in missing:
                (place.attempt / f"bad_node.{node}").write_text(f"{node}\n")
            raise Impossible(f"{', '.join(missing)} left no sign for {wait:.0f} s")
        time.sleep(0.2)
    # A file's time is the file system's own clock, the same for all nodes: compare each node's clock with it.
    skews = {node: float((folder / node).read_text()) - (folder / node).stat().st_mtime for node in place.nodes}
    return judge_clocks(skews, place.node)


def judge_clocks(skews: dict[str, float], node: str) -> str:
    """`skews`: seconds that each node's clock is ahead of the file system's."""
    spread = max(skews.values()) - min(skews.values())
    if spread > MAX_SKEW_S and abs(skews[node]) == max(map(abs, skews.values())):
        raise Unfit(f"its clock is {skews[node]:+.1f} s off the file system's")
    return f"{len(skews)} nodes, clocks within {spread:.1f} s"


def room(run_dir: Path) -> str:
    """Space for two more checkpoints of the size of the newest one; a run's first attempt has nothing to go by."""
    free = shutil.disk_usage(run_dir).free
    kept = sorted((run_dir / "checkpoints").glob("step_*"), key=lambda path: path.stat().st_mtime)
    size = sum(file.stat().st_size for file in kept[-1].rglob("*") if file.is_file()) if kept else 0
    if free < 2 * size:
        raise Impossible(f"{free / 2**30:.1f} GiB free in {run_dir}, a checkpoint has {size / 2**30:.1f} GiB")
    return f"{free / 2**30:.1f} GiB free, a checkpoint has {size / 2**30:.1f} GiB"


def shards(config: Config) -> str:
    """The index and every shard it names can be opened from this node."""
    if not config.data.path:
        return "none named"
    folder = Path(config.data.path)
    try:
        files = sorted(folder.glob("*.tar"))
        if not (folder / "index.json").is_file() or not files:
            raise Impossible(f"{folder} holds no indexed shards")
        for file in files:
            with file.open("rb") as opened:
                opened.read(1)
    except OSError as error:
        raise Unfit(f"{error.filename}: {error.strerror}") from error
    return f"{len(files)} readable"


def prompts(config: Config) -> str:
    """What RLCS asks can be read from this node."""
    named = [path for path in (config.rl.prompts, config.rl.heldout) if path and config.stage.name == "rlcs"]
    for path in named:
        try:
            with Path(path).open("rb") as opened:
                opened.read(1)
        except OSError as error:
            raise Impossible(f"{error.filename}: {error.strerror}") from error
    return f"{len(named)} files"


def limit(config: Config) -> str:
    """Time to save in: the limit is longer than the notice."""
    seconds = seconds_of(config.cluster.time)
    if config.cluster.notice and seconds < config.cluster.notice + SAVE_S:
        raise Impossible(
            f"cluster.time={config.cluster.time} leaves less than {SAVE_S:.0f} s beside cluster.notice="
            f"{config.cluster.notice}"
        )
    return f"{seconds} s, notice {config.cluster.notice} s before its end"


def seconds_of(time_limit: str) -> int:
    """[days-]hours:minutes:seconds."""
    days, dash, rest = time_limit.rpartition("-")
    hours, minutes, seconds = map(int, rest.split(":"))
    return (int(days) if dash else 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def network(place: Place, config: Config) -> str:
    """A sum over all nodes, by gloo on the address that the ranks will use."""
    if len(place.nodes) == 1:
        return "one node"
    import torch
    import torch.distributed as dist

    address = os.environ.get("MASTER_ADDR", place.nodes[0])
    port = int(os.environ.get("MASTER_PORT") or 20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 12000) + 1
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=place.number,
            world_size=len(place.nodes),
            timeout=timedelta(seconds=MEET_S),
        )
        total = torch.ones(1 << 16)
        dist.all_reduce(total)
        dist.barrier()
        dist.destroy_process_group()
    except (RuntimeError, dist.DistError) as error:
        raise Unfit(f"no sum over {len(place.nodes)} nodes at {address}:{port}: {error}") from error
    if not bool((total == len(place.nodes)).all()):
        raise Unfit(f"the sum over {len(place.nodes)} nodes came out as {float(total[0])}")
    return f"sum over {len(place.nodes)} nodes"

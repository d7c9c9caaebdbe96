"""The options of a Slurm cluster (group `cluster`): what a job asks for, how its ranks are started and bound.

They place a run and change no number of it. Which text a field may hold is `launch/fields.py`'s; docs/clusters.md is
the page for people.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Nothing is assumed of the cluster: what is None or empty does not appear in sbatch's arguments."""

    name: str = "local"
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    """Nodes not to use, as Slurm writes them: node[3-5,9]."""
    exclusive: bool = False
    """Whole nodes."""
    nodes: int | None = None
    """None: as many as the layout needs. With parallel.data open, nodes x ranks_per_node is the world."""
    ranks_per_node: int = 8
    """Ranks on one node: its GPUs, or processes on a CPU cluster. A smaller layout uses one node."""
    gpus_per_node: int = 0
    """GPUs to ask for on each node (--gpus-per-node; --gpus spreads them unevenly); 0: none."""
    cpus_per_rank: int = 1
    memory: str | None = None
    """Of each node: 64G, or 0 for all of it."""
    time: str = "01:00:00"
    """Limit of one attempt: [days-]hours:minutes:seconds. A run longer than that saves, requeues itself, resumes."""
    notice: int = 300
    """Seconds before the limit (and before a preemption) at which ranks are told to save and leave. Slurm looks every
    30 s and may tell up to 60 s early."""
    max_requeues: int = 100
    """Attempts after the first, whatever ended them."""
    max_failures: int = 3
    """Attempts in a row that may hang, be killed or lose a node before the job gives up."""
    launcher: str = "srun"
    """srun: one task a rank. torchrun: one task a node, which starts the node's ranks."""
    modules: tuple[str, ...] = ()
    """Environment modules to load on each node's shell, before anything else."""
    environment: tuple[str, ...] = ()
    """NAME=VALUE for every rank, NCCL's above all. They are shown: what is secret belongs in a file on the cluster."""
    bind: tuple[str, ...] = ()
    """Options of srun that bind ranks to CPUs, GPUs and memory: --cpu-bind=..., --gpu-bind=..., --mem-bind=..."""
    numa_of_rank: tuple[int, ...] = ()
    """NUMA node of each local rank's GPU; where given, ranks start under numactl, on its cores and memory."""
    nic_of_rank: tuple[str, ...] = ()
    """NCCL_IB_HCA of each local rank, where NCCL should not choose by itself."""
    container: str = "none"
    """none, pyxis (srun --container-image, enroot) or apptainer (apptainer exec)."""
    container_image: str | None = None
    container_mounts: tuple[str, ...] = ()
    """SOURCE:TARGET[:ro] or PATH. The run directory is always mounted."""
    preflight: bool = True
    """Check nodes, file system and network before the training starts (slurm/preflight.py)."""
    array_limit: int = 8
    """Members of a sweep that run at once."""
    extra: tuple[str, ...] = ()
    """Further options of sbatch, --NAME=VALUE or --NAME, for what has no field here."""

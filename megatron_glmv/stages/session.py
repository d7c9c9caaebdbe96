"""What every stage and tool needs first: platform, distributed world, process groups, seeds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megatron_glmv.config.schema import Config
from megatron_glmv.parallel.launch import RankContext, init_distributed
from megatron_glmv.parallel.topology import Topology
from megatron_glmv.platform.device import Platform, select
from megatron_glmv.resilience.startup import Startup

if TYPE_CHECKING:
    from megatron_glmv.parallel.groups import Groups

WORLD_TIMEOUT_S = 600


@dataclass(frozen=True)
class Session:
    """A rank with its groups."""

    platform: Platform
    groups: Groups
    backend: str
    """Layer specs in use: te or torch."""
    startup: Startup = field(default_factory=Startup)

    @property
    def device(self) -> torch.device:
        return self.platform.device


@contextmanager
def open_session(config: Config, context: RankContext) -> Iterator[Session]:
    """Joins the world as one rank and leaves it. The platform's stand-ins come before megatron-core's first import."""
    platform = select(config.platform)
    platform.install()
    from megatron_glmv.parallel.groups import destroy_groups, init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.platform.features import layer_backend
    from megatron_glmv.precision.fp8 import emulated

    startup = Startup()
    startup.mark("import")
    if platform.device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    init_distributed(context, platform, WORLD_TIMEOUT_S)
    groups = init_groups(Topology.resolve(config.parallel, context.world))
    seed_all(config.train.seed)
    try:
        backend = layer_backend(config.backend, platform, emulate_fp8=emulated(config.precision))
        startup.mark("groups")
        yield Session(platform, groups, backend, startup)
    finally:
        destroy_groups()


@contextmanager
def single_process(config: Config) -> Iterator[Session]:
    """A world of this process alone, for inference and tools. The layout in `config.parallel` must be single."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = Path(folder, "rendezvous").as_uri()
        with open_session(config, RankContext(rank=0, world=1, local_rank=0, init_method=rendezvous)) as session:
            yield session

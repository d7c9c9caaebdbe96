"""Real gloo ranks for tests, from one fork server that has torch and megatron-core imported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron_glmv
from megatron_glmv.parallel.launch import RankContext, RankFailed, init_distributed, launch

PRELOAD = ["helpers.preload"]
TIMEOUT_S = 120
STARTED = time.time()


@dataclass(frozen=True)
class _Joined:
    """`function(*arguments)` in a rank that has joined the world. A class, because it has to be pickled."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    timeout_s: float

    def __call__(self, context: RankContext) -> Any:
        import torch

        from megatron_glmv.platform.device import select

        platform = select("cpu")
        platform.install()
        torch.set_num_threads(1)
        init_distributed(context, platform, self.timeout_s)
        try:
            return self.function(*self.arguments)
        finally:
            torch.distributed.destroy_process_group()


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any, timeout: float = TIMEOUT_S) -> list[Any]:
    """Runs `function(*arguments)` on `world` ranks and returns their results. Raises RankFailed if one fails.

    The function has to be importable by name; collectives give up after `timeout` seconds. Ranks import what the fork
    server has not: a failure after files were changed says so, for then the ranks ran other code than this process.
    """
    try:
        return launch(_Joined(function, arguments, timeout), world, preload=PRELOAD)
    except RankFailed as error:
        for path in changed_since(STARTED)[:3]:
            error.add_note(f"{path} was changed while the tests ran: ranks may have imported it, this process before")
        raise


def changed_since(moment: float) -> list[Path]:
    """Files of the package that were written after `moment` (seconds since the epoch)."""
    return [path for path in Path(megatron_glmv.__file__).parent.rglob("*.py") if path.stat().st_mtime > moment]

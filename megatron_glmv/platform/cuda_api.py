"""Stand-ins for torch.cuda: streams, events, the device, its random generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from megatron_glmv.platform.standins import StandIn, nothing

CPU = torch.device("cpu")


class Event:
    """A mark in a stream. A CPU has no queue to wait for."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...

    wait = synchronize = record

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Event) -> float:
        return 0.0


class Stream:
    """All streams are one and the same."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def synchronize(self, *_: Any) -> None: ...

    wait_stream = wait_event = synchronize

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    __hash__ = object.__hash__


@contextlib.contextmanager
def stream_context(stream: Any = None) -> Iterator[None]:
    yield


def stand_ins() -> list[StandIn]:
    the_stream = Stream()
    devices = "everywhere: device=torch.cuda.current_device(); torch takes a torch.device as well as an index"
    streams = "distributed/param_and_grad_buffer.py, transformer/moe/, pipeline_parallel/: side streams and events"
    rng = "tensor_parallel/random.py: a device generator; the CPU's stands for it"
    table = [
        StandIn("torch.cuda.current_device", lambda: CPU, devices),
        StandIn(
            "torch.cuda.set_device", nothing(), "dist_checkpointing/strategies/async_utils.py: its writer's process"
        ),
        StandIn(
            "torch.cuda.device_count",
            lambda: 1,
            "dist_checkpointing/strategies/async_utils.py: a rank modulo it",
        ),
        StandIn("torch.cuda.synchronize", nothing(), "p2p_communication.py, dist_checkpointing/, timers.py: waiting"),
        StandIn("torch.cuda.empty_cache", nothing(), "distributed/, optimizer/optimizer.py: memory given back"),
        StandIn("torch.cuda.Stream", Stream, streams),
        StandIn("torch.cuda.Event", Event, streams),
        StandIn("torch.cuda.stream", stream_context, streams),
        StandIn("torch.cuda.current_stream", lambda *_: the_stream, streams),
        StandIn("torch.cuda.default_stream", lambda *_: the_stream, streams),
        StandIn("torch.cuda.default_generators", (torch.default_generator,), rng),
        StandIn("torch.cuda.get_rng_state", lambda *_, **__: torch.get_rng_state(), rng),
        StandIn("torch.cuda.random.get_rng_state", lambda *_, **__: torch.get_rng_state(), rng),
        StandIn("torch.cuda.set_rng_state", lambda state, *_, **__: torch.set_rng_state(state), rng),
        StandIn("torch.cuda.manual_seed", torch.default_generator.manual_seed, rng),
    ]
    for name in ("range_push", "range_pop"):
        table.append(StandIn(f"torch.cuda.nvtx.{name}", nothing(), "utils.py: profiler marks; torch's raise"))
    return table

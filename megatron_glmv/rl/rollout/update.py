"""New weights to the rollout servers: paused, streamed in buckets or read from disk, compared, resumed."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from megatron_glmv.checkpoint.hf.safetensors import INDEX, make_header
from megatron_glmv.config.rl import ServerConfig
from megatron_glmv.rl.rollout import broadcast
from megatron_glmv.rl.rollout.server import Server, ServerError
from megatron_glmv.rl.rollout.streaming import Bucket, TrainedTensors

T = TypeVar("T")
LOOKED = 0.01
"""Seconds between two looks at a broadcast that runs."""


class WeightEndpoints(Protocol):
    """How one kind of server takes weights. Each call raises ServerError."""

    def pause(self, server: Server) -> None: ...
    def resume(self, server: Server) -> None: ...
    def reload(self, server: Server, directory: str, version: str) -> None: ...
    def world_size(self, server: Server) -> int: ...
    def join(self, server: Server, address: str, port: int, offset: int, world: int) -> None: ...
    def begin(self, server: Server) -> None: ...
    def receive(
        self, server: Server, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[list[int]]
    ) -> None: ...
    def finish(self, server: Server, version: str) -> None: ...
    def checksums(self, server: Server) -> dict[str, str]: ...


class ServerWeights:
    """Keeps all servers at the trained weights. Called on every rank; the first one talks.

    Where that fails, the first rank goes on with what is collective and says nothing more to the servers; every rank
    then raises with its reason.
    """

    def __init__(
        self,
        endpoints: WeightEndpoints,
        servers: Sequence[Server],
        tensors: TrainedTensors,
        config: ServerConfig,
        exchange: Path,
        device: torch.device,
        group: Any = None,
    ) -> None:
        """group: all ranks that call; None: the whole job. Its first rank is the job's."""
        self.group = group
        self._failed: Exception | None = None
        """What went wrong on the first rank in the present call."""
        self.endpoints, self.servers, self.tensors, self.config = endpoints, servers, tensors, config
        self.exchange, self.device = exchange, device
        self.first = dist.get_rank() == 0
        self.version = 0
        """Updates since this process began; what the servers are told."""
        self._group: Any = None

    def sync(self) -> None:
        """Raises ServerError on every rank where a server is gone, refuses, or holds other weights than the others, and
        on the first one whatever else was in the way. Nothing may be asked of the servers meanwhile."""
        self.version += 1
        self._talk(lambda: self._each(self.endpoints.pause))
        if self.config.update == "disk":
            self._by_disk(str(self.version))
        else:
            self._by_broadcast(str(self.version))
        self._talk(self._compare)
        self._talk(lambda: self._each(self.endpoints.resume))
        self._agree()

    def verify(self) -> None:
        """That all servers hold the same; that it is what is trained is shown by the probe behind every update."""
        self._talk(self._compare)
        self._agree()

    def _talk(self, call: Callable[[], object]) -> None:
        """On the first rank, while nothing has failed."""
        if self.first and self._failed is None:
            try:
                call()
            except Exception as error:  # raised by _agree, when the other ranks are there too
                self._failed = error

    def _agree(self) -> None:
        """Waits for every rank; raises on all of them what failed on the first one."""
        failed, self._failed = self._failed, None
        other = failed if failed is None or isinstance(failed, ServerError) else f"{type(failed).__name__}: {failed}"
        reason = [None if other is None else str(other)]
        dist.broadcast_object_list(reason, 0, self.group)
        if failed is not None:
            raise failed
        if reason[0] is not None:
            raise ServerError(reason[0])

    def _by_broadcast(self, version: str) -> None:
        self._talk(self._join)
        self._talk(lambda: self._each(self.endpoints.begin))
        for bucket in self.tensors.buckets(self.config.bucket_mb << 20):
            self._talk(partial(self._send, bucket))
        self._talk(lambda: self._each(lambda server: self.endpoints.finish(server, version)))

    def _join(self) -> None:
        """Once in a run: the servers' workers and this rank make a group."""
        if self._group is not None:
            return
        address = self.config.address or socket.gethostname()
        sizes = self._each(self.endpoints.world_size)
        offsets = [1 + sum(sizes[:n]) for n in range(len(sizes))]
        world, seconds = 1 + sum(sizes), self.config.timeout_s
        store = broadcast.listen(address, seconds)
        with ThreadPoolExecutor(len(self.servers)) as pool:
            joining = [
                pool.submit(self.endpoints.join, server, address, store.port, offset, world)
                for server, offset in zip(self.servers, offsets, strict=True)
            ]
            self._group = broadcast.open_group(store, 0, world, self.device, seconds)
            for joined in joining:
                joined.result()

    def _send(self, bucket: Bucket) -> None:
        """One broadcast, while the servers' requests for it are open."""
        names = [name for name, _ in bucket]
        dtypes = [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket]
        shapes = [list(tensor.shape) for _, tensor in bucket]
        flat = broadcast.flat_bytes([tensor for _, tensor in bucket])
        with ThreadPoolExecutor(len(self.servers)) as pool:
            asked = [pool.submit(self.endpoints.receive, server, names, dtypes, shapes) for server in self.servers]
            work = broadcast.send(self._group, flat)
            while not work.is_completed():  # a server that refuses never comes to the broadcast
                _raise_first(asked)
                time.sleep(LOOKED)
            work.wait()
            wait(asked)
            _raise_first(asked)

    def _by_disk(self, version: str) -> None:
        folder = self.exchange / f"version_{version}"
        files: dict[str, str] = {}

        def begin() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

        def write(number: int, bucket: Bucket) -> None:
            name = f"model-{number:05d}.safetensors"
            write_bucket(folder / name, bucket)
            files.update(dict.fromkeys((tensor for tensor, _ in bucket), name))

        def load() -> None:
            (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
            self._each(lambda server: self.endpoints.reload(server, str(folder.resolve()), version))
            shutil.rmtree(folder)

        self._talk(begin)
        for number, bucket in enumerate(self.tensors.buckets(self.config.bucket_mb << 20), start=1):
            self._talk(partial(write, number, bucket))
        self._talk(load)

    def _compare(self) -> None:
        """All servers of one kind and layout hold the same. What they hold is told by the gate (log-probabilities)."""
        first, *others = self._each(self.endpoints.checksums)
        for server, found in zip(self.servers[1:], others, strict=True):
            wrong = sorted(name for name in first.keys() | found.keys() if first.get(name) != found.get(name))
            if wrong:
                raise ServerError(f"{server.url} and {self.servers[0].url} differ in {', '.join(wrong[:8])}")

    def _each(self, call: Callable[[Server], T]) -> list[T]:
        """Of all servers at once, in their order."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            return list(pool.map(call, self.servers))


def write_bucket(path: Path, bucket: Bucket) -> None:
    """A safetensors file."""
    tensors = sorted(bucket, key=lambda pair: -pair[1].element_size())  # each starts at a multiple of its element
    with path.open("wb") as file:
        file.write(make_header({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors}))
        for _, tensor in tensors:
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _raise_first(asked: Sequence[Future[None]]) -> None:
    for future in asked:
        if future.done():
            future.result()

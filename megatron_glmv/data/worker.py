"""A decoder process: `python -m megatron_glmv.data.worker CHANNEL LIFELINE`, started by `data/pool.py`.

It is a fresh process, not a fork: DALI hangs in a fork of a process that has used it, and a rank may be a fork itself.
It answers requests in order until its parent closes the channel. Signals meant for the run (Ctrl-C, the scheduler's
warnings) are the parent's business and ignored here; when the parent dies, however it dies, so does this process.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import fields
from pathlib import Path

import torch

from megatron_glmv.config.schema import DataConfig, VisionConfig
from megatron_glmv.data.batches import BatchMaker, Pack
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset
from megatron_glmv.data.lengths import Layouts
from megatron_glmv.data.tokenizer import Tokenizer
from megatron_glmv.data.transport import Closed, receive, send
from megatron_glmv.data.types import Json, PackedBatch

NAMES = ("sample_ids", "failed", "decoders")
"""Fields of a PackedBatch that are names; the others are tensors."""


def main(channel: int, lifeline: int) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    _die_with_parent(lifeline)
    torch.set_num_threads(1)
    parent = socket.socket(fileno=channel)
    try:
        about, _ = receive(parent)
        try:
            maker = make_maker(about)
            send(parent, {"ready": True})
            while True:
                request, _ = receive(parent)
                _answer(parent, maker, request)
        except Closed:
            raise
        except DataError as error:
            send(parent, {"data_error": [error.where, error.reason]})
        except Exception:
            send(parent, {"crash": traceback.format_exc()})
    except Closed:
        pass


def _answer(parent: socket.socket, maker: BatchMaker, request: Json) -> None:
    pack = Pack(tuple(request["samples"]), tuple(request["lengths"]), tuple(request["starts"]))
    if request["careful"]:
        condemned = {int(place): reason for place, reason in request["condemned"].items()}
        batch, failures = maker.make_one_by_one(
            pack, condemned, lambda place: send(parent, {"task": request["task"], "at": place})
        )
    else:
        batch, failures = maker.make(pack)
    tensors = {f.name: getattr(batch, f.name) for f in fields(PackedBatch) if f.name not in NAMES}
    answer: Json = {name: getattr(batch, name) for name in NAMES}
    answer |= {"task": request["task"], "failures": [[f.key, f.shard, f.reason] for f in failures]}
    send(parent, answer, tensors)


def make_maker(about: Json) -> BatchMaker:
    """The maker described by `pool.describe`."""
    device = torch.device(about["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dataset = ShardDataset(Path(about["dataset"]))
    tokenizer = Tokenizer.load(about["tokenizer"])
    layouts = Layouts(dataset, tokenizer, DataConfig(**about["data"]), VisionConfig(**about["vision"]))
    return BatchMaker(layouts, device)


def _die_with_parent(lifeline: int) -> None:
    """Nothing is ever written to `lifeline`, a pipe whose other end only the parent holds: when that end closes, the
    kernel sends SIGIO, which ends this process even while Python is stuck in a decoder."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

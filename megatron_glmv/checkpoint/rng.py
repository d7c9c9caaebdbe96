"""The states of this process's random generators as JSON.

Training draws nothing (no dropout; data order is a function of the seed and the position): this is for what users add.
"""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_glmv.checkpoint.manifest import Json


def rng_state() -> Json:
    """Python, numpy, torch on the CPU and the device, and megatron-core's named streams. About 25 KB."""
    name, keys, position, has_gauss, gauss = cast("tuple[str, Any, int, int, float]", np.random.get_state(legacy=True))
    version, words, gauss_next = random.getstate()
    tracker: dict[str, Any] = get_cuda_rng_tracker().get_states()
    return {
        "python": [version, list(words), gauss_next],
        "numpy": [name, keys.tobytes().hex(), int(position), int(has_gauss), float(gauss)],
        "torch": _hex(torch.get_rng_state()),
        "device": _hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        "streams": {stream: _hex(state) for stream, state in tracker.items() if isinstance(state, torch.Tensor)},
    }


def restore_rng(state: Json) -> None:
    """The inverse. Streams that do not exist here are left out."""
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.frombuffer(bytes.fromhex(keys), dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(_tensor(state["torch"]))
    if state["device"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["device"]))
    tracker = get_cuda_rng_tracker()
    states = tracker.get_states()
    saved = {stream: _tensor(value) for stream, value in state["streams"].items() if stream in states}
    if saved:
        tracker.set_states({**states, **saved})


def _hex(state: torch.Tensor) -> str:
    return state.cpu().numpy().tobytes().hex()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

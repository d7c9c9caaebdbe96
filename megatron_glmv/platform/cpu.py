"""Unmodified megatron-core on CPU processes: stand-ins for CUDA, put in place before its first import."""

from __future__ import annotations

import importlib
from functools import lru_cache

import torch

from megatron_glmv.platform import cuda_api, repairs, tensors
from megatron_glmv.platform.standins import StandIn


@lru_cache(maxsize=1)
def table() -> tuple[StandIn, ...]:
    """Every stand-in, in the order of installation. The last ones go into megatron-core's own modules."""
    return (*cuda_api.stand_ins(), *tensors.stand_ins(), *repairs.stand_ins())


@lru_cache(maxsize=1)
def install() -> None:
    """Idempotent. Refuses to run where CUDA works: everything would silently go to the CPU."""
    if torch.cuda.is_available():
        raise RuntimeError("the CPU platform must not be installed where CUDA works; use platform=cuda")
    for stand_in in table():
        if not stand_in.target.startswith("megatron."):
            _put(stand_in)
    _import_without_compile()
    for stand_in in table():
        if stand_in.target.startswith("megatron."):
            _put(stand_in)


def _put(stand_in: StandIn) -> None:
    parent, name = stand_in.target.rsplit(".", 1)
    try:
        owner = importlib.import_module(parent)
    except ModuleNotFoundError:  # a class, or an attribute of a module
        module, attribute = parent.rsplit(".", 1)
        owner = getattr(importlib.import_module(module), attribute)
    setattr(owner, name, stand_in.value)


def _import_without_compile() -> None:
    """jit.py decorates with torch.compile at import. On a CPU that makes the first step 9 to 18 s."""
    compile_ = torch.compile
    torch.compile = lambda model=None, **_: model
    try:
        importlib.import_module("megatron.core.jit")  # its package imports most of megatron.core
    finally:
        torch.compile = compile_

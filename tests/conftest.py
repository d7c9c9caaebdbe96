"""One thread a process: the ranks of a test share two cores, and a thread pool must not exist when a process forks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in tests/gpu need a GPU and are skipped, with the reason, where there is none."""
    for item in items:
        if Path(item.path).parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not _has_gpu(), reason="no CUDA GPU on this machine"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()

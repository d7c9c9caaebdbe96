"""One Slurm of three nodes, and one small data set, for all tests here; installed from Debian's packages if missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from data.small_set import make
from slurm.cluster import Cluster, install


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := install():
        pytest.skip(f"no Slurm here: {reason}")
    made = Cluster(nodes=3)
    try:
        yield made.up()
    finally:
        made.down()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("set")
    make(directory, images=24, clips=2, texts=24, sound=True)
    return directory / "shards"

"""A decoder process that dies, or falls asleep, whenever it is given files of certain sizes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

from megatron_glmv.data import batches, worker
from megatron_glmv.data.media import Decoded, Item, MediaDecoder

DEADLY, SLEEPY = "TEST_DEADLY_BYTES", "TEST_SLEEPY_BYTES"
"""Environment variables that hold the sizes."""


class PoisonedDecoder(MediaDecoder):
    def decode(self, items: Sequence[Item]) -> list[Decoded]:
        for _, _, data in items:
            if len(data) == int(os.environ[DEADLY]):
                os.kill(os.getpid(), signal.SIGKILL)
            if len(data) == int(os.environ[SLEEPY]):
                time.sleep(3600)
        return super().decode(items)


if __name__ == "__main__":
    batches.MediaDecoder = PoisonedDecoder  # type: ignore[misc]
    worker.main(int(sys.argv[1]), int(sys.argv[2]))

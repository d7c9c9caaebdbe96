"""Kills conversions at random moments and looks at what they leave: python killed.py import|export SOURCE WORK SEED.

Each conversion is a child of its own, forked from this process (which has loaded what it needs and runs no thread), so
that the moments fall into the work and not into Python's start. Prints JSON: kills that struck, how many of them found
nothing yet, a beginning, and a whole result.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from megatron_glmv.checkpoint.errors import CheckpointError
from megatron_glmv.checkpoint.hf import exporting, importing
from megatron_glmv.checkpoint.hf.rows import open_hf
from megatron_glmv.checkpoint.manifest import hash_file
from megatron_glmv.checkpoint.reader import open_checkpoint
from megatron_glmv.config.errors import ConfigError

KILLS = 10
torch.set_num_threads(1)
importing.FILE = 40_000  # many small files instead of a few of 512 MiB
KIND, SOURCE, WORK, SEED = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])


def convert(out: Path) -> None:
    if KIND == "import":
        importing.import_hf(importing.ImportOptions(SOURCE, out, without_tokenizer=True, workers=2))
    else:
        exporting.export_hf(exporting.ExportOptions(SOURCE, out, max_shard_size=40_000, workers=2))


def start(out: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        convert(out)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def files(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): hash_file(p).sha256 for p in directory.rglob("*") if p.is_file()}


def readable(directory: Path) -> bool:
    """Whether a reader takes it for a checkpoint."""
    try:
        if KIND == "import":
            open_checkpoint(directory)
        else:
            open_hf(directory)
    except (CheckpointError, ConfigError):
        return False
    return True


def main() -> None:
    moments, struck, found = random.Random(SEED), 0, {"nothing": 0, "beginning": 0, "whole": 0}
    began = time.monotonic()
    assert os.waitpid(start(WORK / "whole"), 0)[1] == 0
    lasts, whole = time.monotonic() - began, files(WORK / "whole")
    out, unfinished = WORK / "out", WORK / "out.unfinished"
    for _ in range(100):
        child = start(out)
        time.sleep(moments.uniform(0, lasts))
        os.kill(child, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            struck += 1
            kind = "whole" if out.exists() else "beginning" if unfinished.exists() else "nothing"
            found[kind] += 1
        for directory in (out, unfinished):
            there = {name: digest for name, digest in files(directory).items() if name != "journal.jsonl"}
            if directory.exists() and readable(directory):
                assert there == whole, f"{directory.name} is taken for whole, and is not"
            else:
                assert directory is unfinished or not directory.exists(), "OUT is there, and is not whole"
        if struck == KILLS:
            break
        if out.exists():
            shutil.rmtree(out)  # it had finished; begin again
    assert os.waitpid(start(out), 0)[1] == 0
    assert files(out) == whole and not unfinished.exists()
    print(json.dumps({"struck": struck, **found, "files": len(whole)}))


if __name__ == "__main__":
    main()

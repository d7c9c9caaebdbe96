"""Kills a preparation at random moments and goes on: python killed_prepare.py WORK ENDPOINT SEED KILLS.

Each run is a child forked from this process (which has loaded what it needs and runs no thread), so that the moments
fall into the work and not into Python's start. Prints JSON: kills that struck, by the phase they struck in.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from data import planted

from megatron_glmv.data.prepare import options
from megatron_glmv.data.prepare.language import classifier
from megatron_glmv.data.prepare.pipeline import PHASES, Preparation

WORK, ENDPOINT, SEED, KILLS = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)


def files(directory: Path) -> dict[str, str]:
    """Everything but the marks of the phases."""
    found = {p for p in directory.rglob("*") if p.is_file() and p.name != "phase"}
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(found)}


def start(out: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        chosen = options.load("", [f"recaption.endpoint={ENDPOINT}", "balance.cap=2", *BENCH])
        for phase in PHASES:
            with (out / "phase").open("a") as marks:
                marks.write(f"{phase} {time.monotonic()}\n")
            Preparation(WORK / "raw", out, chosen).run(phase)
    except BaseException as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def now(out: Path) -> str:
    """The phase that the last run is in."""
    marks = (out / "phase").read_text().splitlines() if (out / "phase").exists() else []
    return marks[-1].split()[0] if marks else ""


def compare(found: dict[str, str], reference: dict[str, str]) -> None:
    more, fewer = sorted(found.keys() - reference.keys()), sorted(reference.keys() - found.keys())
    other = sorted(name for name in found.keys() & reference.keys() if found[name] != reference[name])
    assert not (more or fewer or other), f"more: {more}, fewer: {fewer}, other: {other}"


BENCH = [f"contamination.files=[{planted.evaluation(WORK / 'evaluation')}]"]


def main() -> None:
    planted.corpus(clean=8).write(WORK / "raw", 6)
    classifier()
    moments, struck = random.Random(SEED), Counter[str]()
    whole, out = WORK / "whole", WORK / "out"
    whole.mkdir()
    out.mkdir()
    began = time.monotonic()
    assert os.waitpid(start(whole), 0)[1] == 0
    lasts = time.monotonic() - began
    begins = [*(float(line.split()[1]) for line in (whole / "phase").read_text().splitlines()), began + lasts]
    takes = {phase: end - begin for phase, begin, end in zip(PHASES, begins, begins[1:], strict=False)}
    reference = files(whole)
    (out / "prepare").mkdir()
    (whole / "prepare" / "answers").rename(out / "prepare" / "answers")  # a model that samples answers otherwise
    runs = -1
    while struck.total() < KILLS:
        runs += 1
        assert runs < 200, struck
        target = PHASES[runs % len(PHASES)]
        (out / "phase").unlink(missing_ok=True)
        child = start(out)
        while now(out) != target and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, takes[target]))
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if killed:
            struck[now(out)] += 1
        for shard in out.glob("*.tar"):
            assert reference[shard.name] == hashlib.sha256(shard.read_bytes()).hexdigest(), "a shard that is not whole"
        if not killed:  # it had finished: begin again
            compare(files(out), reference)
            for left in [*out.iterdir(), *(out / "prepare").iterdir()]:
                if left.is_file():
                    left.unlink()
                elif left.name not in ("prepare", "answers"):
                    shutil.rmtree(left)
    assert os.waitpid(start(out), 0)[1] == 0
    compare(files(out), reference)
    print(json.dumps({"struck": struck.total(), **struck, "files": len(reference)}))


if __name__ == "__main__":
    main()

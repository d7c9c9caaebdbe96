"""A process of the pool: reads one JSON object a line, runs the verifier it names, writes one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from dataclasses import asdict
from io import FileIO
from typing import Any, BinaryIO

from megatron_glmv.rl.rewards import mathematics
from megatron_glmv.rl.rewards.domains import VERIFIERS
from megatron_glmv.rl.rewards.types import Verdict, wrong

CPU_GRACE = 5
"""CPU seconds on top of a call's limit, after which the kernel ends a process that nobody is there to kill."""


def main() -> None:
    """Serve until the pipe closes. argv: package root, address space in MiB."""
    inbox, outbox = take_pipes()
    limit_process(int(sys.argv[2]) << 20)
    _warm()
    outbox.write(b"{}\n")
    for line in inbox:
        request = json.loads(line)
        allow_cpu(float(request["seconds"]))
        verdict = judge(request)
        answer = asdict(verdict)
        outbox.write(json.dumps(answer).encode() + b"\n")


def take_pipes() -> tuple[BinaryIO, FileIO]:
    """(requests, answers): standard input and output, which nothing else can reach from here on."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    os.close(silence)
    return inbox, outbox


def judge(request: dict[str, Any]) -> Verdict:
    """The verdict of the named verifier. Whatever the text makes it raise is a verdict, too."""
    verifier = VERIFIERS[request["verifier"]]
    try:
        return verifier.check(request["final"], request["answer"], request["extra"])
    except MemoryError:
        return wrong("out of memory")
    except Exception as error:  # the parsers of third parties raise whatever they like on hostile text
        return wrong(f"cannot be read: {type(error).__name__}: {error}"[:300])


def _warm() -> None:
    """Load the parser and its tables before the first call's clock runs: 1.5 s and more."""
    with contextlib.suppress(ImportError):
        mathematics.same_expression("\\frac{1}{2}x^2", "(x^2)/2", mathematics.TOLERANCE)


def limit_process(memory: int) -> None:
    """Of address space in bytes; no files, no core, few descriptors."""
    for kind, bound in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def allow_cpu(seconds: float) -> None:
    """So many more for the call that begins."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used.ru_utime + used.ru_stime + seconds) + CPU_GRACE
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))

"""Running code that nobody has read: without network, files, processes and time without end; or not at all.

Two methods, the first that works here: bubblewrap where it is installed, else namespaces made by the process itself.
Both end in landlock, resource limits and a seccomp filter (sandbox_child.py). Where neither works, code is refused:
there is no way to run it unprotected. Python with its standard library is there, nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BUBBLEWRAP, NAMESPACES = "bubblewrap", "namespaces"
MAX_OUTPUT = 1 << 16
"""Bytes of stdout or stderr; the program is ended when it writes more."""
LIBRARIES = ("/usr/lib", "/lib", "/lib64", "/usr/lib64", "/usr/local/lib")
_WORKS = "print(6 * 7)"


class SandboxRefused(RuntimeError):
    """No method works on this machine. The message names each and what is missing."""


@dataclass(frozen=True)
class Limits:
    seconds: float = 5.0
    """Wall time; CPU time is limited to the same, rounded up."""
    memory_mib: int = 512
    """Address space, interpreter included."""


@dataclass(frozen=True)
class Outcome:
    """`end` is "ok", "timeout", "output" (too much of it), "exit N" or "signal N"."""

    end: str
    stdout: str
    stderr: str
    seconds: float


def method() -> str:
    """The method that works here, tried once a process. Raises SandboxRefused."""
    found, problems = _probe()
    if found is None:
        raise SandboxRefused(
            f"code cannot be run safely here ({'; '.join(problems)}); install bubblewrap, or allow user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces > 0) on a kernel with landlock (5.13)"
        )
    return found


@functools.cache
def _probe() -> tuple[str | None, tuple[str, ...]]:
    problems = []
    for name in (BUBBLEWRAP, NAMESPACES):
        if name == BUBBLEWRAP and not shutil.which("bwrap"):
            problems.append("bubblewrap: not installed")
            continue
        outcome = run(_WORKS, limits=Limits(seconds=20), how=name)
        if outcome.end == "ok" and outcome.stdout == "42\n":
            return name, tuple(problems)
        said = outcome.stderr.strip().splitlines()
        problems.append(f"{name}: {said[-1][:200] if said else outcome.end}")
    return None, tuple(problems)


def run(code: str, stdin: str = "", *, call: str = "", limits: Limits | None = None, how: str | None = None) -> Outcome:
    """Run a program on its input. With `call`, an expression: stdout is the repr of its value after the program ran.

    Raises SandboxRefused where no method works.
    """
    limits = limits or Limits()
    request = {
        "code": code,
        "call": call,
        "cpu": int(limits.seconds) + 1,
        "memory": limits.memory_mib << 20,
        "readable": _readable(),
    }
    header = json.dumps(request).encode()
    begun = time.monotonic()
    process = subprocess.Popen(
        _command(how or method()),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
        cwd="/",
    )
    try:
        incoming = b"%016d" % len(header) + header + stdin.encode("utf-8", "replace")
        end, out, err = _talk(process, incoming, begun + limits.seconds)
    finally:
        # its end takes the program along: the program's first process is bound to it by PDEATHSIG
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    return Outcome(end, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), time.monotonic() - begun)


def _talk(process: subprocess.Popen[bytes], incoming: bytes, deadline: float) -> tuple[str, bytes, bytes]:
    """Feed and read until the program ends, is late, or writes too much: (end, stdout, stderr)."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    inbox, outbox = process.stdin.fileno(), process.stdout.fileno()
    streams = {outbox: b"", process.stderr.fileno(): b""}
    with selectors.DefaultSelector() as selector:
        os.set_blocking(inbox, False)
        selector.register(inbox, selectors.EVENT_WRITE)
        for descriptor in streams:
            selector.register(descriptor, selectors.EVENT_READ)
        end, open_streams = "", 2
        while open_streams and not end:
            left = deadline - time.monotonic()
            if left <= 0:
                end = "timeout"
                break
            for key, _ in selector.select(left):
                if key.fd == inbox:
                    incoming = _feed(inbox, incoming)
                    if not incoming:
                        selector.unregister(inbox)
                        process.stdin.close()
                    continue
                piece = os.read(key.fd, 1 << 16)
                streams[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                    open_streams -= 1
                elif len(streams[key.fd]) > MAX_OUTPUT:
                    end = "output"
    if not end:
        try:
            code = process.wait(max(0.0, deadline - time.monotonic()))
            signalled = -code if code < 0 else code - 128 if code > 128 else 0
            end = "ok" if code == 0 else f"signal {signalled}" if signalled else f"exit {code}"
        except subprocess.TimeoutExpired:
            end = "timeout"
    out, err = (text[:MAX_OUTPUT] for text in streams.values())
    return end, out, err


def _feed(inbox: int, incoming: bytes) -> bytes:
    """What is left after one write; nothing where nobody reads any more."""
    try:
        return incoming[os.write(inbox, incoming[: 1 << 16]) :]
    except BlockingIOError:
        return incoming
    except BrokenPipeError:
        return b""


def _python() -> str:
    """The interpreter itself: a virtual environment's link points outside of what is readable inside."""
    return os.path.realpath(sys.executable)


def _readable() -> list[str]:
    return sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), *LIBRARIES})


@functools.cache
def _inside() -> str:
    return (Path(__file__).parent / "sandbox_child.py").read_text(encoding="utf-8")


def _command(how: str) -> Sequence[str]:
    python = [_python(), "-I", "-S", "-B", "-c", _inside(), how]
    if how == NAMESPACES:
        return python
    shown: list[str] = []
    for path in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", sys.base_prefix, *_readable()):
        shown += ["--ro-bind-try", path, path]
    flags = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--dev", "/dev", "--chdir", "/"]
    return [shutil.which("bwrap") or "bwrap", *shown, *flags, *python]

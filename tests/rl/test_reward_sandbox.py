"""Hostile programs in the sandbox, real ones: each tries one thing, and the test sees that it did not happen."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest

from megatron_glmv.rl import sandbox

METHODS = [sandbox.NAMESPACES, sandbox.BUBBLEWRAP]
REFUSED = {
    "socket": "import socket; socket.socket()",
    "fork": "import os; os.fork()",
    "exec": "import os; os.execv('/bin/true', ['true'])",
    "write": "open({path!r}, 'w')",
    "read": "open('/etc/passwd').read()",
    "environment of others": "open('/proc/1/environ').read()",
    "kill": "import os; os.kill(1, 9)",
    "leave": "import os; os.setsid()",
    "memory": "x = bytearray(1 << 31)",
}


def works(how: str) -> None:
    if how == sandbox.BUBBLEWRAP and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    if sandbox.run("print(1)", how=how, limits=sandbox.Limits(20)).end != "ok":
        pytest.skip(f"{how} does not work on this machine")


@pytest.mark.parametrize("how", METHODS)
def test_hostile_programs(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works(how)
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    limits = sandbox.Limits(seconds=5)
    for name, code in REFUSED.items():
        outcome = sandbox.run(code.format(path=str(tmp_path / "x")), limits=limits, how=how)
        assert outcome.end == "exit 1", (name, outcome)
        assert "Error" in outcome.stderr, (name, outcome)
    assert "hunter2" not in sandbox.run("import os; print(dict(os.environ))", limits=limits, how=how).stdout
    assert list(tmp_path.iterdir()) == []
    short = sandbox.Limits(seconds=1)
    for code in ("while True: pass", "import time; time.sleep(99)"):
        late = sandbox.run(code, limits=short, how=how)
        assert late.end in ("timeout", "signal 9")
        assert late.seconds < 4
    flood = sandbox.run("while True: print('x' * 1000)", limits=limits, how=how)
    assert flood.end == "output"
    assert len(flood.stdout) <= sandbox.MAX_OUTPUT
    assert {child.pid for child in psutil.Process().children(recursive=True)} - before == set()


def test_a_program_and_a_call() -> None:
    works(sandbox.method())
    assert sandbox.run("print(input()[::-1])", "abc\n", limits=sandbox.Limits(20)).stdout == "cba\n"
    outcome = sandbox.run("def f(x):\n  print('noise')\n  return (x,)", call="f(3)", limits=sandbox.Limits(20))
    assert (outcome.end, outcome.stdout) == ("ok", "(3,)")


def test_refused_where_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_probe", lambda: (None, ("bubblewrap: not installed", "namespaces: unshare: EPERM")))
    with pytest.raises(sandbox.SandboxRefused, match=r"unshare: EPERM.*install bubblewrap"):
        sandbox.run("print(1)")

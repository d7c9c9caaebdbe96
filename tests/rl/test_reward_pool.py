"""The pool against workers that hang, fork, eat memory, die, or never come up; real processes, real limits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from megatron_glmv.rl.rewards.pool import DIED, TIMEOUT, Call, Pool

BAD = """
import sys; sys.path.insert(0, sys.argv[1])
import json, os, time
from megatron_glmv.rl.rewards import types, worker
def judge(request):
    what = request["do"]
    if what == "hang": time.sleep(60)
    if what == "spin": sum(iter(int, 1))
    if what == "fork":
        if os.fork() == 0: time.sleep(60)
        time.sleep(60)
    if what == "die": os._exit(3)
    if what == "print": print("x" * 100000)
    if what == "flood": return types.Verdict(0.0, "x" * (2 << 20))
    if what == "memory":
        try:
            bytearray(1 << 30)
        except MemoryError:
            return types.wrong("out of memory")
        return types.right("memory without end")
    if what == "file":
        try:
            with open(request["path"], "w") as file: file.write("x" * 100)
        except OSError as error:
            return types.wrong(type(error).__name__)
    if what == "env": return types.right(json.dumps(dict(os.environ)))
    return types.right("fine")
worker._warm = lambda: None
worker.judge = judge
worker.main()
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    one = Pool(workers=2, memory_mib=512, boot=BAD)
    yield one
    one.close()
    assert one.pids == []


def call(do: str, seconds: float = 0.5, **more: str) -> Call:
    return Call({"do": do, **more}, seconds)


@pytest.mark.parametrize("do", ["hang", "spin", "fork"])
def test_a_late_call_is_ended_with_all_its_processes(pool: Pool, do: str) -> None:
    before = time.monotonic()
    late, fine = pool.run([call(do), call("nothing", 5)])
    assert (late.value, late.failure) == (None, TIMEOUT)
    assert 0.5 <= late.seconds < 3
    assert fine.value and fine.value["reason"] == "fine"
    assert time.monotonic() - before < 20
    mine = [c for c in psutil.Process().children(recursive=True) if "megatron_glmv.rl" in " ".join(c.cmdline())]
    assert {child.pid for child in mine} <= set(pool.pids)


@pytest.mark.parametrize("do", ["die", "flood"])
def test_a_worker_that_dies_or_floods_costs_one_call(pool: Pool, do: str) -> None:
    dead, fine = pool.run([call(do, 5), call("nothing", 5)])
    assert (dead.value, dead.failure) == (None, DIED)
    assert fine.value is not None


def test_memory_is_limited(pool: Pool) -> None:
    (reply,) = pool.run([call("memory", 5)])
    assert reply.value and reply.value["reason"] == "out of memory"


def test_prints_go_nowhere_and_files_stay_empty(pool: Pool, tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    printed, wrote = pool.run([call("print", 5), call("file", 5, path=path)])
    assert printed.value and printed.value["reason"] == "fine"
    assert wrote.value and wrote.value["reward"] == 0.0
    assert Path(path).stat().st_size == 0


def test_the_environment_is_not_the_parents(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    fresh = Pool(1, 512, BAD)
    (reply,) = fresh.run([call("env", 5)])
    fresh.close()
    assert reply.value and "hunter2" not in reply.value["reason"]


def test_a_worker_killed_from_outside_is_replaced(pool: Pool) -> None:
    pool.run([call("nothing", 5)])
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    assert [reply.failure for reply in pool.run([call("nothing", 5)] * 6)] == [""] * 6


def test_two_threads_at_once(pool: Pool) -> None:
    found: list[str] = []

    def work(name: str) -> None:
        found.extend(name + str(reply.failure) for reply in pool.run([call("nothing", 5)] * 20))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["a"] * 20 + ["b"] * 20


def test_a_pool_that_cannot_start_says_so() -> None:
    broken = Pool(1, 512, "raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="ended before they were ready"):
        broken.run([call("nothing")])
    broken.close()


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


def test_an_idle_worker_ends_when_its_pipe_closes() -> None:
    lonely = Pool(1, 512, BAD)
    lonely.run([call("nothing", 5)])
    worker = lonely._workers[0]
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert _wait(lambda: worker.process.poll() is not None, 10)
    lonely.close()

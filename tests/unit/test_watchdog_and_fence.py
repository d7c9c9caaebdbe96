"""A rank without progress ends with the hang code; a run directory has one writer; what changed is named on resume."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.load import compose, to_yaml
from megatron_glmv.resilience.exit_codes import EXIT_FILE, say_exit_code
from megatron_glmv.resilience.fence import Fence, SupersededError
from megatron_glmv.resilience.watchdog import Watchdog
from megatron_glmv.stages.rundir import check_resume


def test_a_process_without_progress_ends_with_the_hang_code_and_says_where(tmp_path: Path) -> None:
    code = """
        import time
        from megatron_glmv.resilience.watchdog import Watchdog
        dog = Watchdog(0.4, rank=3).start()
        dog.settled()
        dog.beat("micro-batch 2 of 4, samples a, b")
        time.sleep(60)
    """
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=30, env={EXIT_FILE: str(tmp_path / "exit_code"), **_env()},
    )  # fmt: skip
    assert done.returncode == 70 and time.monotonic() - began < 20
    assert "rank 3 made no progress" in done.stderr and "micro-batch 2 of 4, samples a, b" in done.stderr
    assert "most recent call first" in done.stderr  # the stacks of its threads
    assert (tmp_path / "exit_code").read_text().startswith("70 rank 3")


def _env() -> dict[str, str]:
    import os

    return dict(os.environ)


def test_beats_keep_it_quiet_and_the_first_step_gets_longer() -> None:
    ended: list[int] = []
    reasons: list[str] = []
    dog = Watchdog(0.3, rank=0, end=ended.append)
    dog.on_hang = reasons.append
    dog.start()
    for _ in range(6):
        time.sleep(0.1)
        dog.beat("work")
    time.sleep(0.5)  # longer than the limit, shorter than the first step's
    assert not ended
    dog.settled()
    time.sleep(0.8)
    assert ended == [70] and "at work" in reasons[0]
    Watchdog(0, rank=0).start().close()


def test_the_newest_attempt_owns_the_directory(tmp_path: Path) -> None:
    old = Fence.acquire(tmp_path)
    old.check()
    new = Fence.acquire(tmp_path)
    new.check()
    assert new.token == old.token + 1
    with pytest.raises(SupersededError, match="writes nothing more"):
        old.check()


def test_tokens_of_attempts_that_start_together_differ(tmp_path: Path) -> None:
    tokens: list[int] = []
    threads = [threading.Thread(target=lambda: tokens.append(Fence.acquire(tmp_path).token)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(tokens) == list(range(1, 9))


def test_the_first_word_of_an_exit_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say_exit_code(64, "nobody asked")  # no file, no error
    monkeypatch.setenv(EXIT_FILE, str(tmp_path / "code"))
    say_exit_code(65, "bad\nsample")
    say_exit_code(70, "its peer is gone")
    assert (tmp_path / "code").read_text() == "65 bad sample\n"
    assert [path.name for path in tmp_path.iterdir()] == ["code"]


def test_what_changed_since_the_last_attempt_is_named(tmp_path: Path) -> None:
    config = compose(["experiment=tiny_pretrain", "data.path=x"])
    check_resume(config, tmp_path)  # nothing there
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "checkpoints" / "step_5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_5" / "manifest.json").write_text("{}")
    check_resume(replace(config, parallel=replace(config.parallel, tensor=2)), tmp_path)  # another layout
    changed = replace(config, optim=replace(config.optim, lr=1.0), train=replace(config.train, seed=5))
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.0003, is 1\.0; train\.seed was 1234, is 5"):
        check_resume(changed, tmp_path)
    check_resume(replace(changed, resume="anyway"), tmp_path)
    with pytest.raises(ConfigError, match="has checkpoints"):
        check_resume(replace(config, resume="never"), tmp_path)

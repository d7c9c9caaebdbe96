"""Preparation of a corpus whose bad samples are known: exactly these go, however the work is shared out.

What is not covered: real web data (thresholds are choices), crops and mirror images (no duplicates to a perceptual
hash), a language inside a short caption.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from data import planted
from data.small_set import ask
from typer.testing import CliRunner

from megatron_glmv.cli.app import app
from megatron_glmv.cli.prepare import share
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.data.errors import DataError
from megatron_glmv.data.index import ShardDataset, build_index
from megatron_glmv.data.prepare import options
from megatron_glmv.data.prepare.options import Options
from megatron_glmv.data.prepare.pipeline import Preparation


@pytest.fixture(scope="module")
def corpus() -> planted.Corpus:
    return planted.corpus()


@pytest.fixture(scope="module")
def raw(corpus: planted.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("planted")
    corpus.write(directory / "raw", 8)
    planted.evaluation(directory / "evaluation")
    return directory


def chosen(raw: Path, *overrides: str) -> Options:
    return options.load("", [f"contamination.files=[{raw / 'evaluation' / 'bench.jsonl'}]", *overrides])


def prepare(raw: Path, out: Path, *overrides: str) -> Path:
    Preparation(raw / "raw", out, chosen(raw, *overrides)).run("all")
    return out


def ledger(out: Path) -> dict[str, tuple[str, str]]:
    lines = [json.loads(line) for line in (out / "removed.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: (line["step"], line["reason"]) for line in lines}


def keys(out: Path) -> set[str]:
    dataset = ShardDataset(out)
    return {dataset.entry(i).key for i in range(len(dataset))}


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(raw: Path) -> Path:
    return prepare(raw, raw / "whole")


def test_exactly_what_was_planted_goes_and_each_for_its_reason(corpus: planted.Corpus, whole: Path) -> None:
    assert ledger(whole) == corpus.planted
    assert keys(whole) == {key for key, _ in corpus.samples} - corpus.planted.keys()
    figures = json.loads((whole / "report.json").read_text())
    assert (figures["samples_in"], figures["samples_out"]) == (len(corpus.samples), len(keys(whole)))
    for step in figures["steps"]:
        if "skipped" not in step:
            planted_here = [reason for name, reason in corpus.planted.values() if name == step["step"]]
            assert step["reasons"] == {reason: planted_here.count(reason) for reason in planted_here}
            print(step["step"], step["entered"], step["removed"], step["reasons"])


def test_the_output_is_a_data_set_with_the_index_that_data_make_would_write(
    whole: Path, corpus: planted.Corpus
) -> None:
    dataset = ShardDataset(whole)
    assert all(not dataset.entry(i).reason for i in range(len(dataset)))
    made = {name: (whole / name).read_bytes() for name in ("index.json", "index.jsonl")}
    members = dict(corpus.samples)
    first = dataset.entry(0).key
    assert dataset.member(0, "0.jpg") == members[first]["0.jpg"]
    build_index(whole)
    assert made == {name: (whole / name).read_bytes() for name in made}


def in_tasks(raw: Path, out: Path, tasks: tuple[int, ...], workers: int) -> None:
    """Phases of an array of len(tasks) tasks, which come in this order."""
    for phase in ("scan", "whole", "write", "finish"):
        for index in tasks if phase in ("scan", "write") else (None,):
            share = (0, 1) if index is None else (index, len(tasks))
            Preparation(raw / "raw", out, chosen(raw), workers=workers, share=share).run(phase)


@pytest.mark.parametrize("tasks", [(2, 0, 1), tuple(range(12))])
def test_tasks_and_their_order_change_no_bit(raw: Path, whole: Path, tmp_path: Path, tasks: tuple[int, ...]) -> None:
    in_tasks(raw, tmp_path, tasks, workers=1)
    assert files(tmp_path) == files(whole)


@pytest.mark.slow
def test_processes_change_no_bit(raw: Path, whole: Path, tmp_path: Path) -> None:
    in_tasks(raw, tmp_path, (0,), workers=2)
    assert files(tmp_path) == files(whole)


def test_other_shards_of_the_same_samples_give_the_same_verdicts(
    raw: Path, whole: Path, corpus: planted.Corpus, tmp_path: Path
) -> None:
    corpus.write(tmp_path / "raw", 31, order=5)
    Preparation(tmp_path / "raw", tmp_path / "out", chosen(raw, "balance.cap=9")).run("all")
    prepare(raw, tmp_path / "one", "balance.cap=9")
    assert keys(tmp_path / "out") == keys(tmp_path / "one") == keys(whole), "captions without concepts stay"
    assert ledger(tmp_path / "out") == ledger(whole)


def test_a_second_run_does_nothing_and_other_options_do_only_what_depends_on_them(raw: Path, tmp_path: Path) -> None:
    out = prepare(raw, tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in (out / "prepare").rglob("*.jsonl")}
    prepare(raw, out)
    assert written == {path: path.stat().st_mtime_ns for path in (out / "prepare").rglob("*.jsonl")}
    prepare(raw, out, "duplicates.enabled=false")
    assert {reason for step, reason in ledger(out).values() if step == "duplicates"} == set()
    assert "zcopy-page" in keys(out)
    now = {path: path.stat().st_mtime_ns for path in (out / "prepare").rglob("*.jsonl")}
    changed = {path.parent.name for path in now if now[path] != written.get(path)}
    assert changed == {"write"}


def test_phases_that_do_not_fit_together_are_refused(raw: Path, tmp_path: Path) -> None:
    first = Preparation(raw / "raw", tmp_path, chosen(raw), share=(0, 2))
    first.run("scan")
    with pytest.raises(DataError, match="is not there"):
        first.run("whole")
    Preparation(raw / "raw", tmp_path, chosen(raw)).run("scan")
    with pytest.raises(DataError, match="made with other options"):
        Preparation(raw / "raw", tmp_path, chosen(raw, "language.confidence=0.9")).run("whole")
    first.run("whole")
    first.run("write")
    with pytest.raises(DataError, match="is not there"):
        first.run("finish")
    result = next((tmp_path / "prepare" / "heuristics").glob("*.jsonl"))
    result.write_bytes(result.read_bytes().replace(b"key", b"kez", 1))
    with pytest.raises(DataError, match="sha256"):
        Preparation(raw / "raw", tmp_path, chosen(raw)).run("write")


def test_the_command_says_what_is_skipped_and_prints_the_table(raw: Path, tmp_path: Path) -> None:
    bench = f"contamination.files=[{raw / 'evaluation' / 'bench.jsonl'}]"
    done = CliRunner().invoke(app, ["data", "prepare", str(raw / "raw"), str(tmp_path), bench])
    assert done.exit_code == 0, done.output
    assert "clip: skipped, no model" in done.output
    assert "recaption: skipped, no endpoint" in done.output
    assert "near_duplicate 8" in " ".join(done.output.replace("│", " ").split())
    with pytest.raises(ConfigError, match=r"did you mean duplicates\.distance"):
        options.load("", ["duplicates.distence=3"])
    with pytest.raises(ConfigError, match="is the source"):
        Preparation(raw / "raw", raw / "raw", chosen(raw))


def test_the_share_of_a_task_comes_from_the_option_or_the_array() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert share("1/7", array) == (1, 7)
    assert share("", array) == (2, 4)
    assert share("", array | {"SLURM_ARRAY_TASK_STEP": "2"}) == (1, 4)
    assert share("", {}) == (0, 1)
    with pytest.raises(ConfigError, match="not of the form"):
        share("one/two", {})


def test_the_command_takes_its_share_from_a_slurm_array(raw: Path, whole: Path, tmp_path: Path) -> None:
    bench = f"contamination.files=[{raw / 'evaluation' / 'bench.jsonl'}]"
    for phase in ("scan", "whole", "write", "finish"):
        for task in ("4", "5") if phase in ("scan", "write") else ("",):
            array = {"SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_ID": task}
            command = ["data", "prepare", str(raw / "raw"), str(tmp_path), bench, "--phase", phase]
            done = CliRunner().invoke(app, command, env=array if task else {})
            assert done.exit_code == 0, done.output
            if phase == "scan":
                here = len(list((tmp_path / "prepare" / "inspect").glob("*.jsonl")))
                assert here == {"4": 5, "5": 10}[task], "every second shard of ten"
    assert files(tmp_path) == files(whole)


@pytest.mark.slow
def test_workers_do_not_outlive_a_parent_that_was_killed(raw: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "megatron_glmv.cli", "data", "prepare", str(raw / "raw"), str(tmp_path)]
    parent = subprocess.Popen([*command, "--workers", "2"])
    workers: list[psutil.Process] = []
    limit = time.monotonic() + 120
    while not (tmp_path / "prepare" / "inspect").exists() and time.monotonic() < limit:
        workers = [p for p in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(p.cmdline())] or workers
        time.sleep(0.05)
    assert len(workers) == 2, "the pool was at work"
    parent.send_signal(signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_a_key_in_two_shards_and_a_corpus_with_nothing_left_are_errors(tmp_path: Path) -> None:
    made = planted.Corpus()
    made.add("same", ask("", "", [("Say it", "hello")]), {})
    made.add("same", ask("", "", [("Say it", "goodbye")]), {})
    made.write(tmp_path / "raw", 1)
    with pytest.raises(DataError, match="'same'"):
        Preparation(tmp_path / "raw", tmp_path / "out", Options()).run("all")
    with pytest.raises(DataError, match="no sample is left"):
        chosen = options.load("", ["rules.default.min_words=50"])
        Preparation(tmp_path / "raw", tmp_path / "none", chosen).run("all")

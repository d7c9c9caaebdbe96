"""The `glmv` command as a user runs it: one line and an exit code for each refusal, and help that is there at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_glmv.cli.train import objective
from megatron_glmv.evaluate.metrics import Graded
from megatron_glmv.evaluate.results import summarise
from megatron_glmv.resilience.exit_codes import ExitCode, worst

GLMV = str(Path(sys.executable).with_name("glmv"))


def glmv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GLMV, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["experiment=tiny_pretrain", "parallel.tensor=3"], ["parallel.tensor=3", "parallel.tensor=2 or 1"]),
        (["experiment=tiny_pretrain", "parallel.expert=3"], ["parallel.expert=3", "8 experts"]),
        (["experiment=tiny_pretrain", "paralel.tensor=2"], ["did you mean parallel.tensor?"]),
        (["experiment=tiny_pretrain", "train.steps=ten"], ["train.steps=ten", "expected an integer"]),
        (
            ["experiment=tiny_pretrain", "precision=fp8", "platform=cpu"],
            ["precision.fp8_backend=te", "precision.fp8_backend=emulate"],
        ),
        (["experiment=tiny_pretrian"], ["did you mean experiment=tiny_pretrain?"]),
        ([], ["experiment", "has to be given"]),
        (["experiment=tiny_pretrain", "optim.lr"], ["missing EQUAL"]),
    ],
)
def test_a_refused_train_is_one_line_and_code_64(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    done = glmv("train", *arguments, cwd=tmp_path)
    assert done.returncode == ExitCode.CONFIG
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("glmv train: ")
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--bogus"], 64),
        (["eval", "--bogus"], 64),
        (["eval"], 64),
        (["eval", "compare", "missing", "missing"], 65),
        (["generate", "--ckpt", "missing", "--messages", "a.json", "--prompt", "hi"], 64),
        (["nonsense"], 64),
        (["report", "missing"], 65),
        (["data", "make", "--out", "made", "--jsonl", "missing.jsonl"], 65),
    ],
)
def test_a_wrong_use_of_a_command_has_our_code_and_no_traceback(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    done = glmv(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_every_command_has_help_without_importing_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from megatron_glmv.cli.app import app
commands = ["", "eval", "eval compare", "generate", "report", "doctor", "data", "data make", "train"]
for command in commands:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0 and len(done.output) > 100, (command, done.output)
heavy = {"torch", "megatron", "numpy", "nvidia"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_eval_says_which_option_is_missing(tmp_path: Path) -> None:
    assert "--ckpt" in glmv("eval", "--data", "x.jsonl", cwd=tmp_path).stderr
    assert "--data" in glmv("eval", "--ckpt", "run", cwd=tmp_path).stderr


def test_eval_compare_prints_two_results_side_by_side(tmp_path: Path) -> None:
    for name, correct in {"a": 30, "b": 90}.items():
        (tmp_path / name).mkdir()
        asked = [Graded(str(i), "count", "easy", "image", "1", 0.25, "1", i < correct) for i in range(100)]
        (tmp_path / name / "results.json").write_text(json.dumps(summarise(asked)))
    done = glmv("eval", "compare", "a", "b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "count" in line)
    assert "0.067" in row and "0.867" in row and "+0.800" in row and "yes" in row


def test_a_refused_layout_costs_no_import_of_torch(tmp_path: Path) -> None:
    code = """
import sys
from megatron_glmv.cli.train import main
assert main(["experiment=tiny_pretrain", "parallel.tensor=3"]) == 64
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path)


def test_the_composed_config_can_be_printed(tmp_path: Path) -> None:
    done = glmv("train", "experiment=tiny_pretrain", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0
    assert "experiment: tiny_pretrain" in done.stdout and "expert_tensor: null" in done.stdout


def test_a_sweep_runs_every_member_and_ends_with_the_worst_code(tmp_path: Path) -> None:
    done = glmv(
        "train",
        "experiment=tiny_pretrain",
        "data.path=missing",
        "parallel.tensor=3,1",
        "run_dir=swept",
        "-m",
        cwd=tmp_path,
    )
    assert done.returncode == ExitCode.DATA, done.stderr
    assert "parallel.tensor=3: has to divide" in done.stderr
    assert "member 0 ended with exit code 64" in done.stderr
    assert "member 1 ended with exit code 65" in done.stderr
    assert "missing" in done.stderr
    assert sorted(path.name for path in (tmp_path / "swept").iterdir()) == ["0", "1", "multirun.yaml"]


def test_a_failure_outranks_run_me_again() -> None:
    assert worst([]) == worst([0, 0]) == 0
    assert worst([0, 75]) == 75
    assert worst([75, 64, 0]) == 64
    assert worst([64, 77, 75]) == 77
    assert worst([77, 1]) == 1  # a crash
    assert all(code.meaning for code in ExitCode)


def test_a_sweeper_minimises_the_validation_loss_else_the_loss(tmp_path: Path) -> None:
    assert objective(tmp_path) is None
    steps = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert objective(tmp_path) == 2.0
    steps = [{"step": 1, "loss": 3.0, "val_loss": 4.0}, {"step": 2, "loss": 2.0, "val_loss": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    assert objective(tmp_path) == 4.0

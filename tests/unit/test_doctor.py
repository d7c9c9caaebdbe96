"""`glmv doctor` for real on this machine, and beside packages that are broken, foreign or half there.

The broken ones are small packages in a folder on PYTHONPATH: what they raise is what Transformer Engine 2.11 raises
when only its metapackage is installed. Not covered: a machine with a GPU (tests/gpu), a real Transformer Engine.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_glmv.platform.apex import FEATURES, foreign, resolve
from megatron_glmv.platform.probe import PROBES, Facts

GLMV = str(Path(sys.executable).with_name("glmv"))


def doctor(*arguments: str, path: Path | None = None, commands: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ)
    if path:
        env["PYTHONPATH"] = os.pathsep.join([str(path), env.get("PYTHONPATH", "")])
    if commands:
        env["PATH"] = os.pathsep.join([str(commands), env["PATH"]])
    return subprocess.run([GLMV, "doctor", *arguments], capture_output=True, text=True, timeout=120, env=env)


def parts(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in report["parts"]}


def install(folder: Path, distribution: str, version: str, **modules: str) -> None:
    """A distribution as pip leaves it: metadata and modules (dots as __)."""
    info = folder / f"{distribution}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    for name, source in modules.items():
        place = folder.joinpath(*name.split("__"))
        place.mkdir(parents=True, exist_ok=True)
        for package in (place, *place.parents):
            if package == folder:
                break
            (package / "__init__.py").touch()
        (place / "__init__.py").write_text(source)


def test_the_report_of_this_machine_names_every_part() -> None:
    done = doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for name in ("torch", "megatron-core", "PyAV", "tokenizers", "GPU", "NCCL", "Transformer Engine", "apex", "DALI"):
        assert any(line.startswith(f"{name}: ") for line in lines), name
    for feature in FEATURES:
        assert any(line.startswith(f"{feature.name}: ") for line in lines), feature.name
    assert lines[-1] == "everything required works"
    import torch

    (torch_line,) = (line for line in lines if line.startswith("torch: "))
    assert torch.__version__ in torch_line and "usable" in torch_line


@pytest.fixture(scope="module")
def beside_a_half_installed_te(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Also PyPI's apex, and Slurm's commands without a controller."""
    folder = tmp_path_factory.mktemp("site")
    broken = "raise RuntimeError('Found empty `transformer-engine` meta package installed')"
    install(folder, "transformer_engine", "2.11.0", transformer_engine=broken)
    install(folder, "apex", "0.9.10.dev0", apex="import pyramid")
    commands = tmp_path_factory.mktemp("bin")
    for name, script in {"sbatch": "echo slurm-wlm 22.05.8", "scontrol": "echo 'slurmctld is DOWN'; exit 1"}.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(stat.S_IRWXU)
    done = doctor("--json", path=folder, commands=commands)
    return {"code": done.returncode, "stderr": done.stderr, **json.loads(done.stdout)}


def test_a_half_installed_te_that_breaks_megatron_core_is_found_and_named(
    beside_a_half_installed_te: dict[str, Any],
) -> None:
    found = beside_a_half_installed_te
    te, core = parts(found)["Transformer Engine"], parts(found)["megatron-core"]
    assert te["installed"] == "2.11.0" and te["importable"] is False and "meta package" in te["detail"]
    assert core["required"] and core["usable"] is False and "meta package" in core["detail"]
    assert found["code"] == 64 and found["broken"] == ["megatron-core"] and found["ok"] is False
    assert any("half installed" in warning for warning in found["warnings"])
    assert parts(found)["torch"]["usable"] and parts(found)["PyAV"]["usable"]  # a broken neighbour harms no other


def test_the_web_toolkit_called_apex_is_told_from_nvidias(beside_a_half_installed_te: dict[str, Any]) -> None:
    found = beside_a_half_installed_te
    assert parts(found)["apex"]["installed"] == "0.9.10.dev0" and not parts(found)["apex"]["usable"]
    assert any("Pyramid" in warning for warning in found["warnings"])
    assert foreign("0.9.10.dev0") and not foreign("0.1") and not foreign("")


def test_slurm_commands_without_a_controller_are_not_usable(beside_a_half_installed_te: dict[str, Any]) -> None:
    slurm = parts(beside_a_half_installed_te)["Slurm"]
    assert slurm["installed"] == "slurm-wlm 22.05.8" and not slurm["usable"] and "DOWN" in slurm["detail"]
    assert slurm["stands_in"] and slurm["get"]


def test_each_feature_of_apex_is_taken_from_the_first_that_is_usable() -> None:
    nothing = dict.fromkeys(PROBES, Facts(import_error="ModuleNotFoundError: No module named 'x'"))
    adam, clip, norm, fusion = FEATURES
    assert [resolve(feature, nothing).backend for feature in FEATURES] == ["torch"] * 4
    everything = dict.fromkeys(PROBES, Facts())
    assert [resolve(feature, everything).backend for feature in FEATURES] == ["te"] * 4
    # apex built with some of its extensions only: amp_C, but neither the optimizers nor the weight gradient.
    some = {**nothing, "amp_C": Facts()}
    assert [resolve(feature, some).backend for feature in (adam, clip, fusion)] == ["torch", "apex", "torch"]
    # The norm is RMSNorm, which apex behind megatron-core refuses: never apex.
    assert resolve(norm, {**everything, "Transformer Engine": Facts(unusable="needs a CUDA GPU")}).backend == "torch"
    assert (
        "needs a CUDA GPU"
        in resolve(adam, {**nothing, "Transformer Engine": Facts(unusable="needs a CUDA GPU")}).passed_over
    )


def test_a_terminal_gets_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_glmv.platform import doctor as module

    monkeypatch.setattr(module, "run", lambda: dict.fromkeys(PROBES, Facts(detail="seen")))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert module.main() == 0
    printed = capsys.readouterr().out
    assert "What is here" in printed and "Who does it" in printed and "everything required works" in printed


def test_a_probe_that_kills_its_process_is_told() -> None:
    from megatron_glmv.platform import probe

    dying = probe.Probe("json", lambda: str(os.kill(os.getpid(), 9)))
    table = dict(probe.PROBES)
    probe.PROBES["dying"] = dying
    try:
        facts = probe._ask_all(["dying", "tokenizers"])
    finally:
        probe.PROBES.clear()
        probe.PROBES.update(table)
    assert "exit code -9" in facts["dying"]["import_error"]
    assert facts["tokenizers"]["import_error"] == ""

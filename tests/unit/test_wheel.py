"""The wheel holds everything: built from this checkout, installed elsewhere, run outside the checkout.

Installed without its dependencies into a folder in front of this environment's packages. Not covered: whether pip can
resolve the dependencies (`make setup` does that).
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if site is not None:
        env["PYTHONPATH"] = str(site)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out), cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("megatron_glmv-*.whl")
    return made


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile")
    done = run(*pip, "--target", str(folder), str(wheel), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_it_holds_the_package_the_configs_and_the_licence_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "conf").rglob("*.yaml")}
    assert len(shipped) > 20 and {f"megatron_glmv/{name}" for name in shipped} <= names
    modules = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "megatron_glmv").rglob("*.py")}
    assert modules <= names and {"megatron_glmv/py.typed", "megatron_glmv/report/assets/page.js"} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "tools/", "docs/", "runs/")) for name in names)


def test_commands_run_outside_the_checkout_with_the_configs_of_the_wheel(site: Path, tmp_path: Path) -> None:
    glmv = str(site / "bin" / "glmv")
    where = run(
        sys.executable,
        "-c",
        "from megatron_glmv.config.load import conf_dir; print(conf_dir())",
        cwd=tmp_path,
        site=site,
    )
    assert where.stdout.strip() == str(site / "megatron_glmv" / "conf"), where.stderr
    config = run(glmv, "train", "experiment=tiny_pretrain", "--cfg", "job", cwd=tmp_path, site=site)
    assert config.returncode == 0, config.stderr
    assert "experiment: tiny_pretrain" in config.stdout and "name: tiny_glm45v" in config.stdout
    doctor = run(glmv, "doctor", cwd=tmp_path, site=site)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert doctor.stdout.splitlines()[-1] == "everything required works"
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_its_configs_says_so(wheel: Path, tmp_path: Path) -> None:
    """The test above would see it: the same wheel, cut."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if "/conf/" not in name])
    program = "from megatron_glmv.cli import main; import sys; sys.argv = ['glmv', 'train', '--help']; main()"
    done = run(sys.executable, "-c", program, cwd=tmp_path, site=tmp_path)
    assert done.returncode != 0 and "conf" in done.stderr

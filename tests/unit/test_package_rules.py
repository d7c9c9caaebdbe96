"""Rules of the code base that no reviewer has to watch for: layers, sizes, banned calls, dependencies."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "megatron_glmv").rglob("*.py"))
SCRIPTS = sorted(p for name in ("tools", "slurm") for p in (ROOT / name).rglob("*.py"))
MAX_LINES = 450
MEDIAN_LINES = 200

ALLOWED: dict[str, set[str]] = {"megatron_glmv/rl/sandbox_child.py": {"exec"}}
"""Banned calls that a file may make all the same, by its path: {"megatron_glmv/x.py": {"pickle.load"}}."""

PROVIDED = {"torch": "torch", "yaml": "pyyaml", "PIL": "pillow", "hydra": "hydra-core", "megatron": "megatron-core"}
"""Import names whose distribution is called otherwise (or that a local build renames)."""

OPTIONAL = {
    "nvidia": "dali",
    "transformer_engine": "gpu",
    "math_verify": "rl",
    "transformers": "verify",
    "py3langid": "prepare",
    "apex": "",
    "vllm": "",  # imported by the server's workers alone, in an environment of their own
    "amp_C": "",
    "fused_weight_gradient_mlp_cuda": "",
}
"""Import names of extras, and of what only a container brings."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def banned(tree: ast.AST) -> set[str]:
    """The calls in a file that execute or trust what comes from outside."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}:
            found.add(called)
        if re.fullmatch(r"(pickle|cloudpickle|dill|joblib)\.(load|loads|Unpickler)", called):
            found.add(called)
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if (keyword.arg, value) in {("weights_only", False), ("trust_remote_code", True), ("shell", True)}:
                found.add(f"{keyword.arg}={value}")
    return found


def test_imports_point_downward() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_config_layer_imports_no_torch() -> None:
    code = "import sys, megatron_glmv.config.load, megatron_glmv.config.validate, megatron_glmv.parallel.topology"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_files_are_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in PACKAGE}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}
    with_content = [n for n in lines.values() if n > 1]
    assert statistics.median(with_content) < MEDIAN_LINES


@pytest.mark.parametrize("path", PACKAGE + SCRIPTS, ids=name_of)
def test_nothing_executes_or_trusts_what_comes_from_outside(path: Path) -> None:
    assert banned(ast.parse(path.read_text())) <= ALLOWED.get(name_of(path), set())


def test_the_ban_list_sees_what_it_bans() -> None:
    source = "import pickle\npickle.load(f)\ntorch.load(f, weights_only=False)\nrun('x', shell=True)\neval('1')\n"
    assert banned(ast.parse(source)) == {"pickle.load", "weights_only=False", "shell=True", "eval"}
    assert banned(ast.parse("model.eval()\nyaml.safe_load(f)\ntorch.load(f, weights_only=True)\n")) == set()


def test_every_allowance_is_used() -> None:
    for name, allowed in ALLOWED.items():
        assert allowed == banned(ast.parse((ROOT / name).read_text())), name


def imported() -> set[str]:
    """Top-level names that the package imports and that are neither its own nor the standard library's."""
    names = set()
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"megatron_glmv"} - set(OPTIONAL)


def test_dependencies_are_what_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower() for line in project["dependencies"]}
    distributions = packages_distributions()
    used = {PROVIDED.get(name) or distributions[name][0].lower().replace("_", "-") for name in imported()}
    needed_by_others = {"psutil", "einops", "tensorboard"}  # megatron-core, twice; torch.utils.tensorboard
    assert used <= declared
    assert declared - used <= needed_by_others


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in ("dali", "dev") for line in project["optional-dependencies"][extra]]
    pins = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line[:60]
    )
    for requirement in [*project["dependencies"], *extras]:
        assert re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower() in pins, requirement

"""The training path has no transformers in it: not in what a run loads, not in what the source names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LOADED = """
import importlib, pkgutil, sys
import megatron_glmv
from megatron_glmv.platform.device import select

select("cpu").install()
names = [m.name for m in pkgutil.walk_packages(megatron_glmv.__path__, "megatron_glmv.")]
vllms = "megatron_glmv.rl.rollout.vllm_worker"  # loaded by vLLM, in its own processes, which have more than a run has
assert vllms in names
names = [n for n in names if not n.endswith("__main__") and n != vllms]
for name in names:
    importlib.import_module(name)
for name in ("megatron.core.models.gpt", "megatron.core.optimizer", "megatron.core.dist_checkpointing"):
    importlib.import_module(name)
assert "megatron_glmv.train.loop" in sys.modules and "megatron_glmv.model.glmv" in sys.modules, names
models = sorted(n for n in sys.modules if n.startswith("transformers.models.") or n == "transformers.modeling_utils")
print(len(names), ",".join(models))
"""


def test_a_process_with_every_module_of_the_package_has_loaded_no_transformers_model() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, _, models = done.stdout.strip().splitlines()[-1].partition(" ")
    assert int(count) > 100 and models == ""


def names_imported(tree: ast.AST) -> set[str]:
    """Top-level names that a file imports anywhere, also inside functions and by importlib."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(a.value).partition(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


def imported_at_once(files: list[Path], name: str) -> set[str]:
    """What a file imports outside its functions and classes."""
    (source,) = [f.read_text() for f in files if f.name == name]
    top = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return set().union(*(names_imported(ast.Module([node], [])) for node in top))


REFERENCE = "layers_reference.py"
"""Computes with transformers in a process of its own, for `verify --logits`."""
SCORER = "clip_model.py"
"""Loads a CLIP-like model for `glmv data prepare`, inside the functions that need it."""


def test_no_file_of_the_package_names_transformers() -> None:
    files = sorted((ROOT / "megatron_glmv").rglob("*.py"))
    imports = {f.name: names_imported(ast.parse(f.read_text())) for f in files}
    assert [name for name, found in imports.items() if "transformers" in found] == [SCORER, REFERENCE]
    assert not imports[REFERENCE] & {"megatron_glmv", "megatron"}
    assert not any("layers_reference import" in f.read_text() for f in files)
    assert "transformers" not in imported_at_once(files, SCORER)


def test_the_scan_sees_imports_wherever_they_are() -> None:
    for source in (
        "import transformers.models",
        "def f():\n    from transformers import AutoModel",
        "import importlib\nimportlib.import_module('transformers.models.glm4v')",
        "__import__('transformers')",
    ):
        assert "transformers" in names_imported(ast.parse(source)), source
    assert "transformers" not in names_imported(
        ast.parse("from megatron_glmv import transformers_like\n'transformers'")
    )

"""The torch layers save what Transformer Engine's save: the same keys, shapes and dtypes.

tests/golden/te_keys.json was written by tools/dump_te_keys.py with Transformer Engine installed (its version is in the
file); here only the torch layers are built. Not covered: that the numbers mean the same, which only a GPU can tell
(tests/gpu/test_te_layers.py); layouts of several ranks, which change shards but neither keys nor global shapes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.ranks import run_ranks
from helpers.tools import load_tool

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "te_keys.json"


def tool() -> Any:
    return load_tool("dump_te_keys")


def torch_keys(models: list[str]) -> dict[str, dict[str, str]]:
    """In a rank."""
    from megatron_glmv.config.schema import ParallelConfig
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all
    from megatron_glmv.parallel.topology import Topology

    groups = init_groups(Topology.resolve(ParallelConfig(), 1))
    seed_all(1)
    return {model: tool().keys_of(model, "torch", groups) for model in models}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def ours(golden: dict[str, Any]) -> dict[str, dict[str, str]]:
    return run_ranks(torch_keys, 1, list(golden["models"]))[0]  # type: ignore[no-any-return]


def test_the_file_was_made_with_versions_that_are_supported(golden: dict[str, Any]) -> None:
    assert tuple(map(int, golden["transformer_engine"].split("+")[0].split("."))) >= (2, 9)
    assert golden["megatron_core"].startswith("0.")
    assert set(golden["models"]) == set(tool().MODELS)


@pytest.mark.parametrize("model", ["tiny_glm45v", "tiny_glm41v"])
def test_both_layer_specs_save_the_same(golden: dict[str, Any], ours: dict[str, Any], model: str) -> None:
    theirs = golden["models"][model]
    assert len(theirs) > 40
    # The fixture is of Transformer Engine: the norm in front of a linear layer is a tensor of that layer.
    assert any(key.endswith("linear_qkv.layer_norm_weight") for key in theirs)
    assert sorted(ours[model].keys() - theirs.keys()) == []
    assert sorted(theirs.keys() - ours[model].keys()) == []
    differing = {key: (ours[model][key], theirs[key]) for key in theirs if ours[model][key] != theirs[key]}
    assert differing == {}

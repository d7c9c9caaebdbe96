"""A run that was stopped and resumed is the run that was not stopped.

Same layout: bit for bit, in every loss, weight, fp32 copy and moment. Another layout: loading and saving changes no
bit either (compared are whole tensors, put together from the shards); training on then differs by the order of sums.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from dist.checkpoint_job import Leg, Outcome, live
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.checkpoint.reader import OPTIMIZER, differing_tensors, open_checkpoint
from megatron_glmv.parallel.topology import Topology

LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {},
    "tp2 pp2 ep2": {"tensor": 2, "pipeline": 2, "expert": 2},
    "dp2 ep2": {"data": 2, "expert": 2},
    "dp2": {"data": 2},
    "tp2 encoder sharded": {"tensor": 2, "encoder_tensor": True},
    "pp2 vpp2": {"pipeline": 2, "virtual_pipeline": 2},
    "dp2 overlapped": {"data": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
}


def run(layout: str, precision: str = "fp32", **leg: Any) -> Outcome:
    config = tiny.config(precision=precision, **LAYOUTS[layout])
    outcomes = run_ranks(live, Topology.resolve(config.parallel, None).world, Leg(config, **leg))
    assert all(o.history == outcomes[0].history and o.error == outcomes[0].error for o in outcomes), "ranks disagree"
    return outcomes[0]  # type: ignore[no-any-return]


def only_step(root: Path, step: int, target: Path) -> Path:
    shutil.copytree(root / f"step_{step}", target / f"step_{step}")
    return target


@pytest.mark.parametrize(
    "layout, precision", [("tp2 pp2 ep2", "fp32"), ("dp2 ep2", "bf16"), ("dp2 overlapped", "bf16")]
)
def test_resumed_on_the_same_layout_nothing_differs_in_any_bit(tmp_path: Path, layout: str, precision: str) -> None:
    whole = run(layout, precision, until=4, save=tmp_path / "whole", save_at=(2, 4))
    half = only_step(tmp_path / "whole", 2, tmp_path / "half")
    resumed = run(layout, precision, load=half, until=4, save=tmp_path / "resumed", save_at=(4,))
    assert resumed.resumed_at == 2 and not resumed.error
    assert [step for step, _, _ in resumed.history] == [3, 4]
    assert resumed.history == whole.history[2:]
    ours, theirs = (open_checkpoint(tmp_path / name, verify=True) for name in ("resumed", "whole"))
    assert len(ours.tensors) > 4 * len(ours.weights) - 10, "weights, fp32 copies and two moments"
    assert differing_tensors(ours, theirs) == []
    before = open_checkpoint(half)
    assert len(differing_tensors(before, theirs)) > 0.9 * len(ours.tensors), "steps 3 and 4 changed the model"


def test_a_checkpoint_goes_through_any_chain_of_layouts_unchanged(tmp_path: Path) -> None:
    chain = ["tp2 pp2 ep2", "single", "tp2 encoder sharded", "dp2 overlapped", "pp2 vpp2", "dp2 ep2"]
    straight = run(chain[0], until=4, save=tmp_path / "0", save_at=(2,))
    first = open_checkpoint(tmp_path / "0", verify=True)
    for i, layout in enumerate(chain[1:], start=1):
        moved = run(layout, load=tmp_path / str(i - 1), until=2, save=tmp_path / str(i), save_at=(2,))
        assert moved.resumed_at == 2 and moved.history == []
        assert differing_tensors(open_checkpoint(tmp_path / str(i), verify=True), first) == [], layout
    last = run(chain[-1], load=tmp_path / str(len(chain) - 1), until=4)
    for ours, theirs in zip(last.history, straight.history[2:], strict=True):
        assert ours[0] == theirs[0]
        assert ours[1] == pytest.approx(theirs[1], rel=1e-5)
        assert ours[2] == pytest.approx(theirs[2], rel=1e-4)


def test_an_expert_bias_that_bf16_cannot_hold_comes_back_exactly(tmp_path: Path) -> None:
    """Also into a model that was just cast to bf16 and has not run yet, on another layout."""
    run("dp2 ep2", "bf16", until=1, save=tmp_path / "a", save_at=(0, 1), bias=True)
    run("single", "bf16", load=only_step(tmp_path / "a", 0, tmp_path / "zero"), save=tmp_path / "b", save_at=(0,))
    ours, theirs = open_checkpoint(tmp_path / "b"), open_checkpoint(tmp_path / "zero")
    biases = [name for name in ours.weights if name.endswith("expert_bias")]
    assert len(biases) == 3
    for name in biases:
        bias = ours.tensor(name)
        assert not bias.bfloat16().float().equal(bias), "bf16 holds it, so this test shows nothing"
        assert bias.equal(theirs.tensor(name))
    assert differing_tensors(ours, theirs) == []


def test_bf16_resumed_in_fp32_has_the_same_weights_on_every_replica(tmp_path: Path) -> None:
    """The fp32 copies are finer than the bf16 weights, and each replica loads its own part of them into the weights."""
    run("dp2 ep2", "bf16", until=1, save=tmp_path / "a", save_at=(1,))
    run("dp2", load=tmp_path / "a", until=1, save=tmp_path / "b", save_at=(1,))
    checkpoint = open_checkpoint(tmp_path / "b")
    copies = [name for name in checkpoint.weights if not name.endswith("expert_bias")]
    assert len(copies) > 50
    for name in copies:
        assert checkpoint.tensor(name).equal(checkpoint.tensor(f"{OPTIMIZER}param.{name}")), name


def test_a_checkpoint_before_the_first_step_holds_weights_only(tmp_path: Path) -> None:
    run("single", until=0, save=tmp_path / "a", save_at=(0,))
    checkpoint = open_checkpoint(tmp_path / "a", verify=True)
    assert not checkpoint.manifest.optimizer and not any(n.startswith(OPTIMIZER) for n in checkpoint.tensors)
    resumed = run("single", "bf16", load=tmp_path / "a", until=2)
    straight = run("single", "bf16", until=2)
    assert resumed.resumed_at == 0 and resumed.history == straight.history


def test_nothing_but_tensors_and_json_is_on_disk(tmp_path: Path) -> None:
    run("dp2 ep2", until=1, save=tmp_path, save_at=(1,))
    names = sorted(path.name for path in (tmp_path / "step_1").iterdir())
    assert names == sorted(
        [
            ".metadata",
            "__0_0.distcp",
            "__1_0.distcp",
            "manifest.json",
            "metadata.json",
            "rng_0.json",
            "rng_1.json",
            "state.json",
        ]
    )
    index = (tmp_path / "step_1" / ".metadata").read_bytes()
    for unwanted in (b"_extra_state", b"param_groups", b"BYTE_IO", str(tmp_path).encode()):
        assert unwanted not in index
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.manifest.topology["expert"] == 2
    assert checkpoint.optimizer_step == 1
    _run_the_example_of_the_documentation(tmp_path)


def _run_the_example_of_the_documentation(root: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoint_format.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert '"runs/latest"' in code
    names: dict[str, Any] = {}
    exec(code.replace('"runs/latest"', repr(str(root))), names)
    assert names["first_rows"].shape == (16, 64) and names["tensor"].shape == names["record"].shape

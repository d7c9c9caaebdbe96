"""A part that is trained from a step on starts from its weights and without moments; everything else goes on.

The checkpoint of that step has no optimizer state of the part. It is accepted where the config says that the part was
frozen up to that very step, on any layout, and refused otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dist.checkpoint_job import Job
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.checkpoint.reader import OPTIMIZER, open_checkpoint
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import Config, StageConfig
from megatron_glmv.config.validate import validate
from megatron_glmv.model.freeze import part_of
from megatron_glmv.parallel.topology import Topology

SCHEDULE = StageConfig(freeze_until={"vision": 2, "merger": 2})


def config(name: str, **parallel: Any) -> Config:
    made = tiny.config(**parallel)
    return replace(made, optim=replace(made.optim, name=name), stage=SCHEDULE)


def at(whole: Config, done: int) -> Config:
    return replace(whole, stage=StageConfig(freeze=whole.stage.frozen_at(done)))


def frozen_steps(whole: Config, root: Path) -> int:
    """Two steps and a save; bytes of this rank's optimizer state."""
    job = Job(at(whole, 0))
    for _ in range(2):
        job.train_step()
    job.save(root)
    states = [s for part in job.trainer.optimizer.chained_optimizers for s in part.optimizer.state.values()]
    return sum(t.numel() * t.element_size() for s in states for t in s.values())


def thawed_steps(whole: Config, root: Path, target: Path, allowed: bool) -> tuple[str, list[float], int]:
    from megatron_glmv.checkpoint.errors import MismatchError

    job = Job(at(whole, 2))
    manager = job.manager(root)
    if allowed:
        manager.thawed_by = SCHEDULE.thawed_by
    try:
        state = manager.restore_latest(job.trainer.chunks, job.trainer.optimizer)
    except MismatchError as error:
        return str(error), [], 0
    job.step = state["step"]
    if job.packs is not None:
        job.packs.load_state_dict(state["loader"])
    job.save(target / "loaded")
    losses = [job.train_step()[1] for _ in range(2)]
    job.save(target / "trained")
    states = [s for part in job.trainer.optimizer.chained_optimizers for s in part.optimizer.state.values()]
    return "", losses, sum(t.numel() * t.element_size() for s in states for t in s.values())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_part_thaws_on_another_layout(tmp_path: Path, name: str, capsys: Any) -> None:
    (frozen_bytes,) = run_ranks(frozen_steps, 1, config(name), tmp_path / "a")
    moved = config(name, tensor=2)
    found = run_ranks(thawed_steps, Topology.resolve(moved.parallel, None).world, moved, tmp_path / "a", tmp_path, True)
    assert all(not error for error, _, _ in found) and found[0][1][-1] > 0
    before, loaded, trained = (open_checkpoint(tmp_path / part, verify=True) for part in ("a", "loaded", "trained"))
    kept, new = set(before.tensors), set(loaded.tensors) - set(before.tensors)
    assert {part_of(n.removeprefix(f"{OPTIMIZER}param.")) for n in kept if n.startswith(f"{OPTIMIZER}param.")} == {
        "decoder"
    }
    assert new and all(part_of(key.removeprefix(OPTIMIZER).partition(".")[2]) in ("vision", "merger") for key in new)
    assert all(loaded.tensor(key).equal(before.tensor(key)) for key in kept), "what was trained goes on"
    for key in new:
        weight = loaded.tensor(key.removeprefix(OPTIMIZER).partition(".")[2])
        expected = weight if key.startswith(f"{OPTIMIZER}param.") else torch.zeros_like(weight)
        assert loaded.tensor(key).equal(expected), key
    vision = [n for n in trained.weights if part_of(n) == "vision"]
    assert sum(not trained.tensor(n).equal(loaded.tensor(n)) for n in vision) > 0.9 * len(vision)
    (only,) = {
        sum(t.numel * 4 for n, t in checkpoint.tensors.items() if n.startswith(f"{OPTIMIZER}exp_avg"))
        for checkpoint in (before,)
    }
    with capsys.disabled():
        print(f"\n{name}: bytes of moments with ViT and merger frozen {frozen_bytes}, ", end="")
        print(f"on 2 tensor ranks thawed {[each for _, _, each in found]}")
    assert frozen_bytes == only, "nothing but the decoder's moments"


def test_state_that_is_missing_for_another_reason_is_refused(tmp_path: Path) -> None:
    run_ranks(frozen_steps, 1, config("adamw"), tmp_path / "a")
    ((error, _, _),) = run_ranks(thawed_steps, 1, config("adamw"), tmp_path / "a", tmp_path, False)
    assert "is not in the checkpoint" in error and "vision." in error


@pytest.mark.parametrize(
    "until, word", [({"vison": 3}, "vison is none of"), ({"vision": 2, "merger": 2, "decoder": 2}, "leaves nothing")]
)
def test_schedules_are_checked(until: dict[str, int], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        validate(replace(tiny.config(), stage=StageConfig(freeze_until=until)))

"""One stage after another, each on another layout, as a user starts them.

With a learning rate of 0 a stage that starts from a checkpoint must show the validation losses that the checkpoint had,
by domain, whatever layout made it and whatever layout reads it (fp32, sums in another order: rel 1e-5). Not covered:
what a stage learns (tools/road.py, tests/stages/test_road.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.training import metrics, run

from megatron_glmv.checkpoint import store
from megatron_glmv.checkpoint.reader import differing_tensors, open_checkpoint
from megatron_glmv.config.load import choices, compose
from megatron_glmv.data.synthetic.demo import make_demo
from megatron_glmv.train.state import TrainState

STILL = ("optim.lr=0", "optim.min_lr=0", "optim.weight_decay=0", "train.steps=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("set")
    make_demo(directory, train_images=24, train_videos=12, train_text=12, eval_items=1, workers=0)
    return directory / "train"


@pytest.mark.slow
def test_a_stage_starts_where_the_one_before_ended_on_any_layout_and_biases_move_where_they_should(
    data: Path, tmp_path: Path
) -> None:
    watched = (f"data.val_path={data}", "train.val_packs=16")
    first, tuned, longer = (tmp_path / name for name in ("pretrain", "sft", "longcontext"))
    run(
        data, first, *watched, "parallel=tp2", "train.steps=4", "train.val_every=2", "checkpoint.best=true",
        "checkpoint.every=0", "checkpoint.keep=1",
    )  # fmt: skip
    losses = {r["step"]: r for r in metrics(first) if "val_loss" in r}
    assert sorted(losses) == [2, 4]
    before = {name: value for name, value in losses[4].items() if name.startswith("val_loss")}
    assert {"val_loss", "val_loss/image", "val_loss/text", "val_loss/video"} <= set(before)
    best = min(losses, key=lambda step: losses[step]["val_loss"])
    assert store.best(first / "checkpoints") == best
    assert store.committed(first / "checkpoints") == sorted({best, 4})

    output = run(
        data, tuned, *watched, *STILL, "stage=sft", "parallel=pp2_ep2", f"init_from={first}/checkpoints/step_4"
    )
    assert f"weights from {first}" in output
    (record,) = metrics(tuned)
    assert {name: record[name] for name in before} == pytest.approx(before, rel=1e-5)

    longer_by = ("stage=longcontext", "parallel=cp2", "data.pack_tokens=1024")
    run(data, longer, *watched, *STILL, *longer_by, f"init_from={tuned}")
    given, kept, moved = (open_checkpoint(where) for where in (first / "checkpoints/step_4", tuned, longer))
    assert [n for n in differing_tensors(given, kept) if not n.startswith("optimizer")] == []
    changed = [n for n in differing_tensors(given, moved) if not n.startswith("optimizer")]
    assert changed and all("expert_bias" in name for name in changed)


@pytest.mark.parametrize("model", ["tiny_glm45v", "tiny_glm41v"])
def test_every_tiny_stage_takes_both_models_with_their_own_template(model: str) -> None:
    for experiment in choices("experiment"):
        if experiment.startswith("tiny_"):
            assert compose([f"experiment={experiment}", f"model={model}"]).data.template == model.removeprefix("tiny_")


def test_the_best_loss_is_remembered_across_a_resumption() -> None:
    state = TrainState(step=3)
    assert state.improved(2.0) and not state.improved(2.0) and not state.improved(None) and state.improved(1.5)
    again = TrainState.from_json(state.to_json())
    assert again.best_loss == 1.5 and not again.improved(1.7)
    assert TrainState.from_json({"step": 1, "tokens": 2, "samples": 3, "loader": {}}).best_loss is None

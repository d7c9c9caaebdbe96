"""Muon gives the same updates on every layout, and updates of the size it promises.

Derivation. U' = UV' of the momentum's singular value decomposition is a function of the whole matrix, so a layout that
orthogonalised shards would give other numbers altogether: diag(A, B) aside, NS([A; B]) is not [NS(A); NS(B)]. Gathered,
the only difference is the order of sums. Newton-Schulz multiplies a singular value near 0 by 3.4445 per step, 485 in
five, so rounding at 6e-8 of the largest one may become 3e-5 of the update, in directions in which the gradient is
nothing but rounding; over five steps of lr 2e-3 that stays below 1e-4 of loss, norm and weights, the bound here. Left
out of the weights is the QKV bias: the gradient of k's is 0 but for rounding, which AdamW makes a full step of.

Size. An orthogonal A x B matrix has min(A, B) singular values of 1: its mean square is min(A, B) / AB = 1 / max(A, B),
and 0.2 sqrt(max(A, B)) of it has RMS 0.2. Five steps leave each singular value s within 0.68 to 1.13 if it was above
1e-3 of the largest, so the RMS of an update is 0.2 sqrt(mean s^2), from 0.136 to 0.226, for a momentum of full rank,
and less where the gradient has fewer directions than the matrix (an expert that few tokens reach). That is
muon_scale=shape; measured, the default, divides by the size that the result has, and every update has RMS 0.2.

Not covered: bf16 products (on GPUs), Transformer Engine's grouped experts (their weights are separate parameters, as
here).
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dist.checkpoint_job import Job, Leg, live
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.checkpoint.reader import OPTIMIZER, differing_tensors, open_checkpoint
from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import Config
from megatron_glmv.config.validate import validate
from megatron_glmv.parallel.topology import Topology

STEPS = 5
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2 + SP": {"tensor": 2},
    "EP2 (on DP2)": {"data": 2, "expert": 2},
    "PP2": {"pipeline": 2},
    "DP2": {"data": 2},
}
SLOW: dict[str, dict[str, Any]] = {
    "TP2, encoder sharded": {"tensor": 2, "encoder_tensor": True},
    "CP2": {"context": 2},
    "DP2, overlapped": {"data": 2, "overlap_grad_reduce": True, "overlap_param_gather": True},
    "TP2 x EP2 x ETP2 (on DP2)": {"tensor": 2, "data": 2, "expert": 2, "expert_tensor": 2},
    "TP2 x PP2 x EP2": {"tensor": 2, "pipeline": 2, "expert": 2},
}


def muon(model: Any = tiny.MODEL, **parallel: Any) -> Config:
    config = tiny.config(model, **parallel)
    return replace(config, optim=replace(config.optim, name="muon"))


@dataclass(frozen=True)
class Found:
    history: list[tuple[int, float, float]]
    shards: dict[str, tuple[tuple[slice, ...], tuple[int, ...], Any]]
    """Name -> (where this rank's shard is, shape of the whole, values)."""


def run_steps(config: Config) -> Found:
    from megatron_glmv.checkpoint.sharded import model_state
    from megatron_glmv.model.initialise import shards

    job = Job(config)
    history = [job.train_step() for _ in range(STEPS)]
    job.trainer.start_reading_weights()
    found = {}
    for chunk in job.trainer.chunks:
        for shard in shards(model_state(chunk, job.metadata)):
            name = ".".join([shard.key, *map(str, shard.global_offset[: shard.prepend_axis_num])])
            whole = tuple(shard.global_shape[shard.prepend_axis_num :])
            found[name] = (shard.global_slice()[shard.prepend_axis_num :], whole, shard.data.detach().numpy().copy())
    return Found(history, found)


def whole_weights(ranks: list[Found]) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for rank in ranks:
        for name, (where, shape, values) in rank.shards.items():
            target = made.setdefault(name, torch.full(shape, math.nan))
            target[where] = torch.from_numpy(values).reshape(target[where].shape)
    return made


def run_layout(config: Config) -> tuple[list[tuple[int, float, float]], dict[str, torch.Tensor]]:
    ranks = run_ranks(run_steps, Topology.resolve(config.parallel, None).world, config)
    assert all(rank.history == ranks[0].history for rank in ranks)
    return ranks[0].history, whole_weights(ranks)


def compare(layouts: dict[str, dict[str, Any]], capsys: Any) -> None:
    history, weights = run_layout(muon())
    assert history[-1][1] < history[0][1]
    with capsys.disabled():
        print(f"\nMuon, {STEPS} steps, fp32: largest relative difference to the single process")
        print(f"{'layout':28} {'loss':>9} {'grad norm':>9} {'weights':>9}")
    for name, parallel in layouts.items():
        ours, theirs = run_layout(muon(**parallel))
        loss = max(abs(a[1] - b[1]) / b[1] for a, b in zip(ours, history, strict=True))
        norm = max(abs(a[2] - b[2]) / b[2] for a, b in zip(ours, history, strict=True))
        assert theirs.keys() == weights.keys()
        matrices = {k: w for k, w in weights.items() if not k.endswith("linear_qkv.bias")}
        apart = {k: float((theirs[k] - w).norm() / w.norm().clamp_min(1e-3)) for k, w in matrices.items()}
        worst = max(apart, key=apart.__getitem__)
        with capsys.disabled():
            print(f"{name:28} {loss:9.1e} {norm:9.1e} {apart[worst]:9.1e}  {worst}")
        assert loss <= 1e-4 and norm <= 1e-4 and apart[worst] <= 1e-4, name


def test_four_layouts_agree_with_one_process(capsys: Any) -> None:
    compare(LAYOUTS, capsys)


@pytest.mark.slow
def test_products_of_layouts_agree_with_one_process(capsys: Any) -> None:
    compare(SLOW, capsys)


@pytest.mark.slow
def test_orthogonalising_shards_would_be_seen() -> None:
    """The comparison can fail: with every matrix taken for unsharded, tensor ranks orthogonalise halves."""
    history, weights = run_layout(muon())
    ranks = run_ranks(_by_shards, 2, muon(tensor=2))
    theirs = whole_weights(ranks)
    name = "language.decoder.layers.0.self_attention.linear_proj.weight"
    assert (theirs[name] - weights[name]).norm() / weights[name].norm() > 1e-2
    assert abs(ranks[0].history[-1][1] / history[-1][1] - 1) > 1e-4


def _by_shards(config: Config) -> Found:
    from megatron_glmv.train import optimizer

    optimizer._sharded_dim = lambda *_: None
    return run_steps(config)


def first_updates(config: Config) -> dict[str, list[float]]:
    """RMS of what the first step took from each matrix, over lr; q, k, v, gate and up apart. One process, no decay."""
    from megatron_glmv.train.optimizer import set_learning_rate
    from megatron_glmv.train.orthogonal import matrices_of, take
    from megatron_glmv.train.param_groups import inner_name, kind_of

    job = Job(config)
    named = [(inner_name(n), p) for chunk in job.trainer.chunks for n, p in chunk.named_parameters()]
    before = {name: p.detach().clone() for name, p in named}
    rate = 1e-2
    set_learning_rate(job.trainer.optimizer, rate)
    job.trainer.step(job.feed.next_step())
    found = {}
    text = config.model.text
    for name, p in named:
        if kind_of(name, p) in ("matrix", "router"):
            heads = (text.heads // text.kv_heads, text.head_dim) if name.startswith("language") else (1, 16)
            change = (before[name] - p.detach()) / rate
            found[name] = [
                float(take(change, rows).square().mean().sqrt()) for rows in matrices_of(name, len(p), *heads)
            ]
    return found


@pytest.mark.parametrize("how", ["measured", "shape"])
def test_updates_have_the_promised_size(how: str, capsys: Any) -> None:
    config = muon()
    config = replace(config, optim=replace(config.optim, weight_decay=0.0, muon_scale=how))
    found = run_ranks(first_updates, 1, config)[0]
    assert len(found["language.decoder.layers.0.self_attention.linear_qkv.weight"]) == 3
    values = torch.tensor([size for sizes in found.values() for size in sizes])
    assert len(values) > 80
    with capsys.disabled():
        print(f"\nRMS of the first update / lr of {len(values)} matrices, {how}: ", end="")
        print(f"mean {values.mean():.4f}, {values.min():.4f} to {values.max():.4f}; promised 0.2")
    if how == "measured":
        assert (values / 0.2 - 1).abs().max() < 2e-3  # weights of 0.02 in fp32 less an update of 2e-3
    else:
        assert values.max() <= 0.226 and 0.16 <= values.mean() <= 0.2


def lived(config: Config, **leg: Any) -> Any:
    return run_ranks(live, Topology.resolve(config.parallel, None).world, Leg(config, **leg))[0]


def test_the_state_moves_between_layouts(tmp_path: Path, capsys: Any) -> None:
    """Saved on TP2 x PP2 x EP2 at step 2, loaded and saved by one process and by DP2 overlapped: equal bit by bit, the
    momentum of matrices without a second moment; steps 3 and 4 are those of the run never stopped."""
    whole = lived(muon(tensor=2, pipeline=2, expert=2), until=4, save=tmp_path / "a", save_at=(2,))
    first = open_checkpoint(tmp_path / "a", verify=True)
    moved = lived(muon(), load=tmp_path / "a", until=2, save=tmp_path / "b", save_at=(2,))
    overlapped = muon(data=2, overlap_grad_reduce=True, overlap_param_gather=True)
    last = lived(overlapped, load=tmp_path / "b", until=4, save=tmp_path / "c", save_at=(2,))
    assert moved.resumed_at == last.resumed_at == 2 and not moved.error and not last.error
    for other in ("b", "c"):
        assert differing_tensors(open_checkpoint(tmp_path / other, verify=True), first) == []
    for ours, theirs in zip(last.history, whole.history[2:], strict=True):
        assert ours[1:] == pytest.approx(theirs[1:], rel=1e-4)
    name = "language.decoder.layers.0.self_attention.linear_proj.weight"
    assert f"{OPTIMIZER}exp_avg.{name}" in first.tensors and f"{OPTIMIZER}exp_avg_sq.{name}" not in first.tensors
    state = sum(t.numel for n, t in first.tensors.items() if n.startswith((f"{OPTIMIZER}exp_avg",)))
    weights = sum(first.tensors[n].numel for n in first.weights if not n.endswith("expert_bias"))
    with capsys.disabled():
        print(f"\nmoments: {state / weights:.2f} elements for each weight (AdamW: 2.00)")
    assert state / weights < 1.5


@pytest.mark.slow
def test_resumed_in_bf16_nothing_differs_in_any_bit(tmp_path: Path) -> None:
    config = replace(muon(data=2, expert=2), precision=replace(tiny.config().precision, name="bf16"))
    whole = lived(config, until=3, save=tmp_path / "whole", save_at=(2, 3))
    shutil.copytree(tmp_path / "whole" / "step_2", tmp_path / "half" / "step_2")
    resumed = lived(config, load=tmp_path / "half", until=3, save=tmp_path / "resumed", save_at=(3,))
    assert resumed.history == whole.history[2:] and whole.history[-1][1] < whole.history[0][1]
    assert differing_tensors(*(open_checkpoint(tmp_path / name) for name in ("resumed", "whole"))) == []


@pytest.mark.parametrize(
    "option, value", [("name", "moun"), ("muon_steps", 0), ("muon_rms", 0.0), ("no_decay", ("nrom",))]
)
def test_options_are_checked(option: str, value: Any) -> None:
    config = muon()
    with pytest.raises(ConfigError, match=f"optim.{option}"):
        validate(replace(config, optim=replace(config.optim, **{option: value})))

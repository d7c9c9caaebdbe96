"""Levers on memory change what is kept, not what is computed: frozen parts, recomputation, the type of gradients.

Derivation. Recomputing a layer in the backward pass runs the same operations on the same numbers, so gradients are
equal bit for bit. A frozen part keeps every bit of its weights and has neither gradients nor moments; the others get
the same gradient as before, since the chain rule through the frozen part does not ask who trains. bf16 gradients have 8
bits: 2^-8 of a gradient, so loss after a few steps is compared to 1 %.

Not covered: how much memory is saved on a GPU; offload of the optimizer's states to the CPU, which is not offered
(test_cpu_offload.py says why).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dist.checkpoint_job import Job
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import Config, StageConfig
from megatron_glmv.config.validate import validate
from megatron_glmv.parallel.topology import Topology


def ranks(config: Config) -> int:
    return Topology.resolve(config.parallel, None).world


def freezing(*parts: str, model: Any = tiny.MODEL, **parallel: Any) -> Config:
    return replace(tiny.config(model, **parallel), stage=StageConfig(freeze=parts))


def weights(job: Job) -> dict[str, Any]:
    """This rank's parameters and expert biases by name, as arrays."""
    from megatron_glmv.train.step import unwrap

    found: dict[str, Any] = {}
    for i, chunk in enumerate(job.trainer.chunks):
        model = unwrap(chunk)
        biases = {name: b for name, b in model.named_buffers() if name.endswith("expert_bias")}
        found |= {
            f"{i}.{n}": t.detach().float().clone().numpy()
            for n, t in {**dict(model.named_parameters()), **biases}.items()
        }
    return found


def _train_frozen(config: Config, root: Path) -> dict[str, Any]:
    """Two steps, a save, a third step; then the same third step after loading the save."""
    from megatron_glmv.checkpoint.reader import OPTIMIZER, open_checkpoint
    from megatron_glmv.model.freeze import part_of

    job = Job(config)
    before = weights(job)
    history = [job.train_step(), job.train_step()]
    after = weights(job)
    path = job.save(root)
    third = job.train_step()
    changed: dict[str, set[bool]] = {}
    for name, value in before.items():
        part = part_of(name.partition(".")[2])
        changed.setdefault(part, set()).add(not np.array_equal(value, after[name]))
    buffers = [b for c in job.trainer.chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
    mains = [p for part in job.trainer.optimizer.chained_optimizers for g in part.param_groups for p in g["params"]]
    saved = {
        n.removeprefix(f"{OPTIMIZER}exp_avg.")
        for n in open_checkpoint(path).tensors
        if n.startswith(f"{OPTIMIZER}exp_avg.")
    }
    job.step = 0
    assert job.resume(root) == 2
    again = job.train_step()
    return {
        "changed": changed,
        "buffered": sum(b.grad_data.numel() for b in buffers),
        "trained": sum(p.numel() for c in job.trainer.chunks for p in c.parameters() if p.requires_grad),
        "states": sum(p.numel() for p in mains),
        "saved": {part_of(name) for name in saved},
        "history": history,
        "again": again == third,
    }


@pytest.mark.parametrize(
    "parts, parallel",
    [
        (("vision",), {"tensor": 2}),
        (("vision", "merger"), {"pipeline": 2, "overlap_grad_reduce": True}),
        (("decoder",), {"pipeline": 2}),
        (("decoder", "merger"), {"tensor": 2, "expert": 2}),
    ],
    ids=str,
)
def test_frozen_parts_keep_every_bit_and_have_no_state(tmp_path: Path, parts: tuple[str, ...], parallel: Any) -> None:
    config = freezing(*parts, **parallel)
    validate(config, None)
    trained = {"vision", "merger", "decoder"} - set(parts)
    found = run_ranks(_train_frozen, ranks(config), config, tmp_path)
    assert found[0]["history"][0][2] > 0, "no gradient"
    for rank in found:
        for part, changes in rank["changed"].items():
            assert (True in changes) == (part in trained), part
        assert rank["trained"] <= rank["buffered"] < rank["trained"] + 128 * 8  # padding of buckets
        assert rank["states"] == rank["trained"]
        assert rank["saved"] == trained
        assert rank["again"], "a run resumed with frozen parts goes on as it would have"


def _gradients(config: Config, steps: int = 1) -> dict[str, Any]:
    job = Job(config)
    for _ in range(steps):
        job.train_step()
    named = [(n, p) for c in job.trainer.chunks for n, p in c.named_parameters()]
    return {name: p.main_grad.clone().float().numpy() for name, p in named if p.requires_grad}


def test_what_is_trained_gets_the_gradient_it_gets_when_all_is() -> None:
    """Without clipping, which would scale by the norm of what is trained."""
    whole, frozen = (
        run_ranks(_gradients, 1, replace(c, optim=replace(c.optim, clip_grad=0.0)))[0]
        for c in (tiny.config(), freezing("decoder"))
    )
    assert frozen and all(".vision." in name for name in frozen)
    assert set(whole) - set(frozen) == {name for name in whole if ".language." in name}
    for name, gradient in frozen.items():
        assert np.linalg.norm(gradient - whole[name]) <= 1e-5 * np.linalg.norm(whole[name]), name


def _passes(config: Config) -> tuple[dict[str, Any], int, int]:
    """Gradients, and how often a decoder layer and an encoder layer ran in a step."""
    from megatron_glmv.train.step import unwrap

    job = Job(config)
    counts = [0, 0]

    def count(which: int) -> Any:
        def hook(*_: Any) -> None:
            counts[which] += 1

        return hook

    model = unwrap(job.trainer.chunks[0])
    model.language.decoder.layers[0].register_forward_hook(count(0))
    if model.vision is not None:
        model.vision.blocks.layers[0].register_forward_hook(count(1))
    job.train_step()
    named = [(n, p) for c in job.trainer.chunks for n, p in c.named_parameters()]
    return {name: p.main_grad.clone().numpy() for name, p in named}, *counts


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"pipeline": 2}], ids=str)
def test_recomputing_changes_no_bit_of_a_gradient(parallel: Any) -> None:
    plain = tiny.config(**parallel)
    whole = run_ranks(_passes, ranks(plain), plain)
    for options, decoder, vision in (
        ({"recompute": "full"}, 2, 2),
        ({"recompute": "selective"}, 1, 1),
        ({"recompute_vision": True}, 1, 2),
        ({"recompute": "full", "recompute_vision": False}, 2, 1),
    ):
        config = replace(plain, train=replace(plain.train, **options))  # type: ignore[arg-type]
        for ours, theirs in zip(run_ranks(_passes, ranks(config), config), whole, strict=True):
            assert ours[0].keys() == theirs[0].keys()
            assert all(np.array_equal(ours[0][name], theirs[0][name]) for name in theirs[0])
            assert (ours[1], ours[2]) == (decoder * theirs[1], vision * theirs[2]), options


def _gradient_types(config: Config) -> tuple[set[str], float, int]:
    job = Job(config)
    for _ in range(3):
        loss = job.train_step()[1]
    types = {str(b.grad_data.dtype) for c in job.trainer.chunks for b in c.buffers}
    size = sum(b.grad_data.numel() * b.grad_data.element_size() for c in job.trainer.chunks for b in c.buffers)
    return types, loss, size


def test_gradients_in_bf16_take_half_the_room() -> None:
    high = tiny.config(precision="bf16", tensor=2)
    low = replace(high, precision=replace(high.precision, grad_reduce_fp32=False))
    (types, loss, size), (low_types, low_loss, low_size) = (run_ranks(_gradient_types, 2, c)[0] for c in (high, low))
    assert (types, low_types) == ({"torch.float32"}, {"torch.bfloat16"})
    assert size == 2 * low_size
    assert low_loss != loss and abs(low_loss - loss) < 1e-2 * loss


@pytest.mark.parametrize(
    "parts, says", [(("vit",), "vit is none of"), (("vision", "merger", "decoder"), "leaves nothing to train")]
)
def test_what_cannot_be_frozen_is_refused(parts: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=f"stage.freeze.*{says}"):
        validate(freezing(*parts), None)
    assert not StageConfig(freeze=("decoder",), expert_bias="moving").bias_moves

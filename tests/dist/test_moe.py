"""Balancing of experts as the paper trains it: what moves the bias, and a balance loss of each sample.

Derivation. For a sample of n tokens, E experts, k slots a token and scores s (sigmoid of the router's logits):
f_i = (slots that expert i gets by score) / (k n), P_i = mean over the tokens of s_i / sum_j s_j, and
L = E sum_i f_i P_i (arXiv 2412.19437, equations 17 to 20); f carries no gradient. Tokens that all prefer experts 0 and
1 of 4 with scores (0.8, 0.8, 0.2, 0.2) have f = (1/2, 1/2, 0, 0) and P = (0.4, 0.4, 0.1, 0.1), so L = 4 x 0.4 = 1.6;
with every second token turned round, f = P = 1/4 and L = 1, the least there is. The training loss gets the coefficient
times the mean of L over the samples of the global batch, in every sparse layer.
After a step, the bias of expert i moves by the rate times sign(mean load - its load) (arXiv 2408.15664), loads being
whole numbers of slots of the global batch, padding left out.

Not covered: that balancing helps. Layouts beyond those here are compared by loss and gradient norm in test_layouts.py,
with a balance coefficient of 0.1.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from dist.checkpoint_job import Job
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.schema import Config, StageConfig
from megatron_glmv.model.config import text_transformer_config
from megatron_glmv.parallel.topology import Topology

SKEWED = [0.8, 0.8, 0.2, 0.2]
CU = torch.tensor([0, 4, 7, 8], dtype=torch.int32)
"""A skewed sample of 4; an even one of 2 and a skewed token of padding; a segment of padding alone."""
SCORES = torch.tensor([SKEWED] * 4 + [SKEWED, SKEWED[::-1], SKEWED, SKEWED])
PADDING = torch.tensor([False] * 6 + [True] * 2)


def config(stage: StageConfig | None = None, precision: str = "fp32", **moe: Any) -> Config:
    made = tiny.config(precision=precision)
    text = replace(tiny.TEXT, moe=replace(tiny.MOE, **moe))
    return replace(made, model=replace(made.model, text=text), stage=stage or StageConfig(),
                   optim=replace(made.optim, clip_grad=0.0))  # fmt: skip


def spread(made: Config, **parallel: Any) -> Config:
    return replace(made, parallel=replace(made.parallel, **parallel))


def ranks(made: Config) -> int:
    return Topology.resolve(made.parallel, None).world


def _router(made: Config) -> Any:
    import torch.distributed as dist

    from megatron_glmv.model.router import BalancedRouter
    from megatron_glmv.parallel.groups import init_groups
    from megatron_glmv.parallel.seeding import seed_all

    groups = init_groups(Topology.resolve(made.parallel, dist.get_world_size()))
    seed_all(3)
    router = BalancedRouter(text_transformer_config(made, groups.topology), pg_collection=groups.mcore)
    router.set_layer_number(1)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=torch.Generator().manual_seed(1)))
    return router


def by_hand(logits: torch.Tensor, padding: torch.Tensor, cu_seqlens: torch.Tensor, topk: int) -> torch.Tensor:
    """The sum over samples of L, sample by sample, from the definition."""
    total = torch.zeros(())
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        scores = torch.sigmoid(logits[start:end][~padding[start:end]])
        if len(scores):
            slots = torch.zeros_like(scores)
            for token, row in enumerate(scores):
                slots[token, row.topk(topk).indices] = 1.0
            share = slots.sum(0) / (topk * len(scores))
            total = total + scores.shape[1] * (share * (scores / scores.sum(1, keepdim=True)).mean(0)).sum()
    return total


def _example(made: Config) -> tuple[float, float]:
    from megatron_glmv.model.router import read_routing_mask, routing_mask, segment_of_token

    router = _router(made)
    logits = torch.logit(SCORES)
    mask = routing_mask(PADDING, segment_of_token(CU), 3)
    each = float(router.balance_loss(logits, *read_routing_mask(mask.t())))
    return each, float(router.balance_loss(logits, PADDING, None, 1))


def test_balance_loss_of_each_sample_by_hand() -> None:
    """1.6 + 1 for the samples. The pack as one sequence would have f = (5, 5, 1, 1) / 12, P = (2.1, 2.1, 0.9, 0.9) / 6:
    L = 4 x 2 x (5 x 2.1 + 0.9) / 72 = 1.2667."""
    each, whole = run_ranks(_example, 1, config())[0]
    assert each == pytest.approx(2.6, abs=1e-6)
    assert whole == pytest.approx(4 * 2 * (5 * 2.1 + 0.9) / 72, abs=1e-6)


def _balance_gradient(made: Config) -> tuple[Any, Any, list[float]]:
    """Gradient of the balance loss in the router's weight through the router's own forward pass, the same by hand, and
    the expert loads it counted: of a pack of 32 tokens whose second sample lies on both sides of the middle."""
    import torch.distributed as dist

    from megatron_glmv.model.router import routing_mask, segment_of_token

    router = _router(made)
    cu = torch.tensor([0, 9, 23, 32], dtype=torch.int32)
    padding = torch.zeros(32, dtype=torch.bool)
    padding[[7, 8, 22]] = True
    padding[28:] = True
    hidden = torch.randn(32, 1, made.model.text.hidden, generator=torch.Generator().manual_seed(2))
    mask = routing_mask(padding, segment_of_token(cu), 3).t()
    rank, size = router.tp_cp_group.rank(), router.tp_cp_group.size()
    router.balance_scale = 3.0
    probs, _ = router(hidden.chunk(size)[rank], mask.chunk(size)[rank])
    (probs * 0).sum().backward()
    gradient, loads = router.weight.grad.clone(), router.local_tokens_per_expert.clone()
    dist.all_reduce(gradient)
    dist.all_reduce(loads)
    router.weight.grad = None
    total = by_hand(router.gating(hidden).view(32, -1), padding, cu, router.topk)
    (total * 3.0 * made.model.text.moe.aux_loss).backward()  # type: ignore[union-attr]
    return gradient.numpy(), router.weight.grad.numpy(), loads.tolist()


def test_balance_loss_has_its_gradient_when_tensor_ranks_share_a_sample() -> None:
    loads = []
    for tensor in (1, 2):
        ours, right, counted = run_ranks(_balance_gradient, tensor, spread(config(), tensor=tensor))[0]
        assert np.abs(right).max() > 1e-3
        assert np.abs(ours - right).max() < 1e-5 * np.abs(right).max()
        loads.append(counted)
    assert loads[0] == loads[1]
    assert sum(loads[0]) == 2 * (32 - 7), "two slots for each token that is not padding"


def _gradients(job: Job) -> dict[str, Any]:
    """After a step: the gradients that it used."""
    named = [item for chunk in job.trainer.chunks for item in chunk.named_parameters()]
    return {name.replace("module.", ""): p.main_grad.clone().numpy() for name, p in named}


def _step_gradients(made: Config) -> dict[str, Any]:
    job = Job(made)
    job.train_step()
    return _gradients(job)


def _reference_gradients(made: Config) -> dict[str, Any]:
    """Gradients of coefficient x (mean over the samples of the first global batch) of L, by autograd on `by_hand`."""
    from megatron_glmv.model.router import BalancedRouter
    from megatron_glmv.train.step import model_inputs, unwrap

    moe = made.model.text.moe
    assert moe is not None
    job = Job(replace(made, model=replace(made.model, text=replace(made.model.text, moe=replace(moe, aux_loss=0.0)))))
    model = unwrap(job.trainer.chunks[0])
    logits: list[torch.Tensor] = []
    for module in model.modules():
        if isinstance(module, BalancedRouter):
            gating = module.gating
            module.gating = lambda x, gating=gating: logits.append(gating(x)) or logits[-1]  # type: ignore[func-returns-value]
    total, samples = torch.zeros(()), 0
    for batch in job.feed.next_step():
        inputs = model_inputs(batch, torch.device("cpu"), model.vision)
        logits.clear()
        model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)
        assert len(logits) == 3
        for found in logits:
            total = total + by_hand(found.view(-1, moe.experts), batch.padding, batch.cu_seqlens, moe.topk)
        samples += len(batch.sample_ids)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(total * moe.aux_loss / samples, list(parameters.values()), allow_unused=True)
    return {name: g.numpy() for name, g in zip(parameters, found, strict=True) if g is not None}


def test_training_adds_the_mean_over_samples_to_the_loss() -> None:
    """The gradient with the balance loss less the gradient without it, for every parameter that the loss reaches. A
    coefficient of 10 makes the difference as large as the rest, so that rounding is 1e-6 of it."""
    with_loss = run_ranks(_step_gradients, 1, config(aux_loss=10.0))[0]
    without = run_ranks(_step_gradients, 1, config(aux_loss=0.0))[0]
    right = run_ranks(_reference_gradients, 1, config(aux_loss=10.0))[0]
    reached = {name for name, gradient in right.items() if np.linalg.norm(gradient) > 1e-3}
    assert sum(name.endswith("router.weight") for name in reached) == 3
    assert any(name.startswith("vision.") for name in reached)
    for name in reached:
        ours = with_loss[name] - without[name]
        assert np.linalg.norm(ours - right[name]) < 1e-4 * np.linalg.norm(right[name]), name


@pytest.mark.parametrize("layout", [{"tensor": 2}, {"tensor": 2, "expert": 2}, {"pipeline": 2}], ids=str)
def test_routers_get_the_same_gradient_in_every_layout(layout: dict[str, int]) -> None:
    made = spread(config(aux_loss=1.0), **layout)
    found: dict[str, Any] = {}
    for stage, gradients in enumerate(run_ranks(_step_gradients, ranks(made), made)):
        first = 2 * stage if "pipeline" in layout else 0  # layers are counted from 0 in each stage
        for name, gradient in gradients.items():
            if name.endswith("router.weight"):
                found[str(first + int(name.split(".layers.")[1].split(".")[0]))] = gradient
    right = run_ranks(_step_gradients, 1, config(aux_loss=1.0))[0]
    assert sorted(found) == ["1", "2", "3"]
    for layer, gradient in found.items():
        reference = right[f"language.decoder.layers.{layer}.mlp.router.weight"]
        assert np.linalg.norm(gradient - reference) < 1e-4 * np.linalg.norm(reference)


def _count(loads: torch.Tensor, _: Any, inputs: Any, output: Any) -> None:
    """A forward hook of a router: adds the tokens of each expert to `loads` in passes that will have a backward."""
    if torch.is_grad_enabled():
        loads += (output[1] & ~inputs[1][:, :1]).sum(0)


def _biases(made: Config, steps: int) -> tuple[list[Any], list[Any], list[list[float]], set[str]]:
    """Expert biases of each router before and after `steps`, the sum of the signs by which they should have moved, from
    loads counted here, and the types they have after."""
    from megatron_glmv.model.router import BalancedRouter
    from megatron_glmv.train.step import unwrap

    job = Job(made)
    routers = [m for m in unwrap(job.trainer.chunks[0]).modules() if isinstance(m, BalancedRouter)]
    job.train_step()  # a model cast to bf16 gets its biases back to fp32 in its first pass, or not at all
    loads = torch.zeros(len(routers), 4, dtype=torch.int64)
    for i, router in enumerate(routers):
        router.expert_bias.copy_(1.0 + (1 + i + torch.arange(4)) * 2.0**-12)  # bf16 keeps none of the digits behind 1
        router.register_forward_hook(partial(_count, loads[i]))
    before = [router.expert_bias.clone().numpy() for router in routers]
    signs = torch.zeros(len(routers), 4)
    for _ in range(steps):
        loads.zero_()
        job.train_step()
        signs += torch.sign(loads.sum(1, keepdim=True) / 4 - loads)
    after = [router.expert_bias for router in routers]
    return before, [bias.float().numpy() for bias in after], signs.tolist(), {str(bias.dtype) for bias in after}


@pytest.mark.parametrize("precision, recompute", [("fp32", "none"), ("bf16", "none"), ("fp32", "full")])
def test_bias_moves_by_the_rate_against_the_load(precision: str, recompute: str) -> None:
    made = config(precision=precision)
    made = replace(made, train=replace(made.train, recompute=recompute))
    before, after, signs, types = run_ranks(_biases, 1, made, 1)[0]
    assert types == {"torch.float32"}
    assert len(before) == 3
    for old, new, sign in zip(before, after, signs, strict=True):
        expected = np.float32(1e-3) * np.array(sign, dtype=np.float32)
        assert np.abs(expected).max() > 0
        assert np.abs(new - old - expected).max() < 3e-7, "fp32 of 1 + 1e-3 rounds by 1.2e-7"


@pytest.mark.parametrize(
    "stage", [StageConfig(name="sft"), StageConfig(name="rlcs"), StageConfig(expert_bias="frozen")]
)
def test_a_frozen_bias_keeps_every_bit(stage: StageConfig) -> None:
    assert not stage.bias_moves
    if stage.name == "sft":  # one of them in a run; the others by what megatron-core is told
        before, after, _, _ = run_ranks(_biases, 1, config(stage), 2)[0]
        assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
    topology = Topology()
    assert text_transformer_config(config(stage), topology).moe_router_bias_update_rate == 0.0
    assert text_transformer_config(config(), topology).moe_router_bias_update_rate == 1e-3
    assert StageConfig(name="sft", expert_bias="moving").bias_moves


def test_a_routing_mask_gives_back_what_it_was_made_of() -> None:
    from megatron_glmv.model.router import read_routing_mask, routing_mask, samples_in, segment_of_token

    for lengths in ([5], [3, 4], [1, 2, 3, 0, 4], [1] * 33):
        cu = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
        segments = segment_of_token(cu)
        padding = torch.rand(len(segments)) < 0.3
        mask = routing_mask(padding, segments, len(lengths))
        read_padding, read_segments, room = read_routing_mask(mask.t())
        assert torch.equal(read_padding, padding) and torch.equal(read_segments, segments)
        assert len(lengths) <= room < 2 * len(lengths)
    assert samples_in(PADDING, CU) == 2

"""The multi-token prediction layer against its definition, and what it must leave alone.

Derivation. For token t of a sample with tokens c_0 .. c_(n-1), t <= n - 2, the layer gets h_t, what the output layer
gets of token t, and e, the embedding of c_(t+1):

    x_t = W [norm(e); norm(h_t)]
    a = x + attention(norm(x))
    y = norm(a + moe(norm(a)))
    m_t = nll(head(y_t), c_(t+2))

with attention over the x of the same sample up to t, at the positions of the h. A step's loss is

    L = (sum_t w_t l_t + f sum_t w_(t+1) m_t) / sum_t w_t

where w_t is the weight of predicting c_(t+1): a token weighs the same wherever it is predicted from. The reference
below is that, in plain torch, a sample at a time without padding, from the weights' names alone; both sides are fp32
sums of the same products, so that logits agree to 1e-5 (of max(1, |logit|)) and gradients to 1e-4 in each tensor's
norm. A shift by another token, a step across a sample's end, a norm left out show as 1e-1.

With f = 0 the layer's part of every gradient is f times a finite number, which is 0, and x + 0 = x in every bit.

Layouts (TP, PP, VPP, CP, EP and products) are rows of test_layout_table.py. Not covered: Transformer Engine; the
released Air's weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dist.checkpoint_job import Job, Leg, live
from dist.test_memory_levers import _gradients
from dist.test_model_invariants import _model
from dist.test_pack_traps import permuted
from helpers import tiny
from helpers.ranks import run_ranks

from megatron_glmv.config.schema import Config, MTPConfig
from megatron_glmv.data.types import PackedBatch
from megatron_glmv.model.prediction import PREDICTION, following
from megatron_glmv.parallel.topology import Topology

LOGITS, GRADIENTS = 1e-5, 1e-4
LAYER = f"{PREDICTION}layers.0."
EMBEDDING, HEAD = "language.embedding.word_embeddings.weight", "language.output_layer.weight"


def predicting(factor: float = 0.3, **parallel: Any) -> Config:
    return tiny.config(replace(tiny.MODEL, mtp=MTPConfig(layers=1, loss_weight=factor)), **parallel)


def ranks(config: Config) -> int:
    return Topology.resolve(config.parallel, None).world


class Reference:
    """The layer in plain torch. `weights`: leaves by name; shapes: n tokens of a sample, H hidden, D head width."""

    def __init__(self, config: Config, weights: dict[str, torch.Tensor]) -> None:
        self.text, self.weights = config.model.text, weights

    def of(self, name: str) -> torch.Tensor:
        return self.weights[LAYER + name]

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.text.norm_eps) * self.of(name)

    def rotated(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[n, heads, D]: halves of the first half of D, each frequency with the position of its axis."""
        width = int(self.text.head_dim * self.text.rotary_percent)
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(self.text.mrope_section))
        speed = self.text.rope_theta ** -(torch.arange(0, width, 2).float() / width)
        angle = (positions[axis].T.float() * speed)[:, None]  # [n, 1, width / 2]
        a, b, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], dim=-1)

    def attention(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        text, name = self.text, "transformer_layer.self_attention."
        share, size = text.heads // text.kv_heads, text.head_dim
        joined = x @ self.of(f"{name}linear_qkv.weight").T + self.of(f"{name}linear_qkv.bias")
        joined = joined.view(len(x), text.kv_heads, share + 2, size)
        q = self.rotated(joined[:, :, :share].reshape(len(x), -1, size), positions)
        k = self.rotated(joined[:, :, share], positions).repeat_interleave(share, dim=1)
        v = joined[:, :, share + 1].repeat_interleave(share, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        return mixed @ self.of(f"{name}linear_proj.weight").T

    def expert(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gate, up = (x @ self.of(f"{name}.linear_fc1.weight").T).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ self.of(f"{name}.linear_fc2.weight").T

    def moe(self, x: torch.Tensor) -> torch.Tensor:
        moe, name = self.text.moe, "transformer_layer.mlp."
        assert moe is not None
        scores = torch.sigmoid(x @ self.of(f"{name}router.weight").T)
        chosen = (scores + self.of(f"{name}router.expert_bias")).topk(moe.topk, dim=-1).indices
        share = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
        share = share / share.sum(-1, keepdim=True)
        every = [self.expert(x, f"{name}experts.local_experts.{e}") for e in range(moe.experts)]
        return sum((share[:, e : e + 1] * out for e, out in enumerate(every)), self.expert(x, f"{name}shared_experts"))

    def logits(self, hidden: torch.Tensor, next_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """hidden [n, H], next_ids [n], positions [3, n] -> [n, W]."""
        embedded = self.norm(self.weights[EMBEDDING][next_ids], "enorm.weight")
        x = torch.cat([embedded, self.norm(hidden, "hnorm.weight")], dim=-1) @ self.of("eh_proj.weight").T
        x = x + self.attention(self.norm(x, "transformer_layer.input_layernorm.weight"), positions)
        x = x + self.moe(self.norm(x, "transformer_layer.pre_mlp_layernorm.weight"))
        return self.norm(x, "final_layernorm.weight") @ self.weights[HEAD].T


def _inputs(model: Any, batch: PackedBatch) -> dict[str, Any]:
    from megatron_glmv.train.step import model_inputs

    return model_inputs(batch, torch.device("cpu"), model.vision, ahead=True)


def _both(model: Any, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Main losses and the layer's [2, T], and the weights of the latter [T]."""
    inputs = _inputs(model, batch)
    weights = inputs["ahead"].loss_weights
    return model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs), weights


@torch.no_grad()
def _moved(model: Any) -> None:
    """Every number of the layer off its default."""
    g = torch.Generator().manual_seed(5)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.startswith(PREDICTION):
            noise = torch.randn(tensor.shape, generator=g)
            bias, norm = name.endswith("bias"), "norm" in name
            tensor.copy_(1 + 0.25 * noise if norm else 0.1 * noise if bias else noise / tensor.shape[-1] ** 0.5)


def _against_reference(config: Config) -> dict[str, Any]:
    """Largest difference of logits and losses, and the relative difference of each gradient."""
    model = _model(config)
    _moved(model)
    model.eval()  # no balance loss
    batch = tiny.pack(1)
    seen: list[torch.Tensor] = []

    def cut(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """What lies before the layer is no part of the comparison but for the gradient that it is given."""
        seen.append(given[0].detach().requires_grad_())
        return (seen[-1], *given[1:])

    model.language.mtp.layers[0].register_forward_pre_hook(cut)
    model.language.output_layer.register_forward_hook(lambda *given: seen.append(given[2][0].clone()))
    losses, weights = _both(model, batch)
    _, hidden, logits = seen  # logits of the main model come first
    names = [n for n, _ in model.named_parameters() if n.startswith(PREDICTION) or n in (EMBEDDING, HEAD)]
    parameters = dict(model.named_parameters())
    wanted = [hidden, *(parameters[name] for name in names)]
    ours = torch.autograd.grad((losses[1] * weights).sum(), wanted)

    state = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    leaves = {n: t.requires_grad_(n in names) for n, t in state.items()}
    given = hidden.detach()[:, 0].clone().requires_grad_()
    reference, total, far, counted = Reference(config, leaves), torch.zeros(()), [0.0], 0
    for start, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
        n = int((~batch.padding[start:end]).sum())
        if n < 2:
            continue
        here, behind = slice(start, start + n - 1), slice(start + 1, start + n)
        made = reference.logits(given[here], batch.input_ids[behind], batch.position_ids[:, here])
        far.append(float(((logits[here, 0] - made).abs() / made.abs().clamp(min=1)).detach().max()))
        nll = F.cross_entropy(made, batch.labels[behind], reduction="none")
        far.append(float((nll - losses[1, here]).detach().abs().max()))
        total = total + (nll * batch.loss_weights[behind]).sum()
        counted += int((batch.loss_weights[behind] > 0).sum())
    theirs = torch.autograd.grad(total, [given, *(leaves[name] for name in names)])
    gradients = {
        name: float((mine.flatten() - other.flatten()).norm() / other.norm())
        for name, mine, other in zip(["hidden", *names], ours, theirs, strict=True)
    }
    return {"far": max(far), "gradients": gradients, "counted": counted, "weights": int((weights > 0).sum())}


def test_the_layer_is_its_definition() -> None:
    found = run_ranks(_against_reference, 1, predicting())[0]
    assert found["far"] <= LOGITS
    assert len(found["gradients"]) > 20 and found["counted"] == found["weights"] > 20
    far = {name: value for name, value in found["gradients"].items() if not value <= GRADIENTS}
    assert far == {}


def _permutation(config: Config) -> dict[str, float]:
    model = _model(config)
    _moved(model)
    model.eval()
    batch = tiny.pack(1)
    order = [2, 0, 1, *range(3, len(batch.cu_seqlens) - 1)]
    found = []
    for one in (batch, permuted(batch, order)):
        model.zero_grad(set_to_none=True)
        losses, weights = _both(model, one)
        (losses[1] * weights).sum().backward()
        found.append((losses[1].detach() * (weights > 0), {n: p.grad.clone() for n, p in model.named_parameters()}))
    (losses, gradients), (moved, others) = found
    bounds = batch.cu_seqlens.tolist()
    back = torch.cat([losses[bounds[i] : bounds[i + 1]] for i in order])
    far = [float((others[n] - g).norm() / g.norm()) for n, g in gradients.items() if g.norm() > 1e-7]
    return {
        "losses": float((back - moved).abs().max()),
        "gradients": max(far),
        "places": float((losses - moved).abs().max()),
    }


def test_samples_may_change_places_in_a_pack() -> None:
    found = run_ranks(_permutation, 1, predicting())[0]
    assert found["losses"] < 2e-5 and found["gradients"] < GRADIENTS
    assert found["places"] > 0.1  # and they did change places


def test_nothing_is_predicted_across_the_end_of_a_sample() -> None:
    """Two samples of 4 and 1 tokens with padding behind each up to 8, and a full segment of 3."""
    ids = torch.arange(100, 119)
    padding = torch.ones(19, dtype=torch.bool)
    padding[[0, 1, 2, 3, 8, 16, 17, 18]] = False
    labels, weights = ids + 1, (~padding).float() * torch.arange(1, 20)
    found = following(ids, labels, weights, padding, torch.tensor([0, 8, 16, 19], dtype=torch.int32))
    known = [0, 1, 2, 16, 17]
    assert (~found.absent).nonzero().flatten().tolist() == known
    assert found.input_ids[known].tolist() == [101, 102, 103, 117, 118]
    assert found.labels[known].tolist() == [102, 103, 104, 118, 119]
    assert found.loss_weights[known].tolist() == [2, 3, 4, 18, 19]
    assert not found.loss_weights[found.absent].any() and not found.input_ids[found.absent].any()


def test_with_weight_0_the_other_gradients_are_those_without_the_layer_in_every_bit() -> None:
    (without,), (silent,), (heard,) = (
        run_ranks(_gradients, 1, one) for one in (tiny.config(), predicting(0.0), predicting(0.3))
    )

    def differing(found: dict[str, Any]) -> list[str]:
        return [name for name, gradient in without.items() if not np.array_equal(gradient, found[name])]

    extra = silent.keys() - without.keys()
    assert extra and all(PREDICTION in name for name in extra)
    assert differing(silent) == [] and not any(silent[name].any() for name in extra)
    assert len(differing(heard)) > 0.9 * len(without)


def _recomputed(config: Config) -> tuple[dict[str, Any], int]:
    job = Job(config)
    passes = [0]

    def count(*_: Any) -> None:
        passes[0] += 1

    from megatron_glmv.train.step import unwrap

    unwrap(job.trainer.chunks[0]).language.mtp.layers[0].transformer_layer.register_forward_hook(count)
    job.train_step()
    named = [(n, p) for c in job.trainer.chunks for n, p in c.named_parameters()]
    return {name: p.main_grad.clone().numpy() for name, p in named}, passes[0]


def test_recomputing_the_layer_changes_no_bit() -> None:
    plain = predicting()
    ((whole, once),) = run_ranks(_recomputed, 1, plain)
    ((again, twice),) = run_ranks(_recomputed, 1, replace(plain, train=replace(plain.train, recompute="full")))
    assert twice == 2 * once > 0
    assert all(np.array_equal(again[name], gradient) for name, gradient in whole.items())


def _losses_of(config: Config, ckpt: Path) -> float:
    """Main loss of a pack with the weights of a checkpoint; a layer that the model does not have is left behind."""
    job = Job(config)
    job.manager(Path("unused")).load_weights(ckpt, job.trainer.chunks)
    return job.train_step()[1]


@pytest.mark.slow
def test_a_run_goes_on_in_another_layout_and_without_the_layer(tmp_path: Path) -> None:
    """Saved on two pipeline stages, which both hold the embedding, and read by one process, by tensor ranks, and as
    weights by a model that has no such layer."""
    staged = predicting(pipeline=2, data=2)
    saved = Leg(staged, until=4, save=tmp_path, save_at=(2,))
    right = run_ranks(live, ranks(staged), saved)[0].history[2:]
    for config in (predicting(), predicting(tensor=2), predicting(pipeline=2, virtual_pipeline=2)):
        for rank in run_ranks(live, ranks(config), Leg(config, load=tmp_path, until=4)):
            assert rank.resumed_at == 2 and not rank.error
            for mine, other in zip(rank.history, right, strict=True):
                assert mine[0] == other[0] and np.allclose(mine[1:], other[1:], rtol=1e-5)
    plain = tiny.config()
    first = run_ranks(_losses_of, 1, plain, tmp_path / "step_2")[0]
    fresh = run_ranks(live, 1, Leg(plain, until=1))[0].history[0][1]
    other = run_ranks(_losses_of, 1, predicting(), tmp_path / "step_2")[0]
    assert first == pytest.approx(other, rel=1e-6) and abs(first - fresh) > 1e-3


def test_a_checkpoint_from_before_the_option_is_one_without_the_layer(tmp_path: Path) -> None:
    from dataclasses import asdict

    from megatron_glmv.checkpoint.identity import model_differences

    before, now = asdict(tiny.MODEL), asdict(tiny.MODEL)
    del before["mtp"]
    assert model_differences(before, now) == []
    with_layer = asdict(replace(tiny.MODEL, mtp=MTPConfig(layers=1)))
    assert model_differences(before, with_layer) == ["model.mtp.layers is 0 and 1"]

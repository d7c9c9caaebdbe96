"""Transformer Engine's layers against the torch layers on one GPU: loss and gradients in bf16, and the FP8 recipes.

Derivation. Both layer specs start from the same weights (bitwise: fresh weights depend on the seed and the sharded keys
alone) and compute the same function in another order and with other kernels. bf16 rounds each of some ten products in a
row by 2^-9 on average, so that a loss differs by about 1e-3 and a gradient by 1 to 2 % in its tensor's norm; a wrong
mask, norm or rotary style shows as 0.1 and more. FP8 rounds by up to 2^-4: 2 % in the loss, 20 % in a gradient (the
torch layers on a CPU: bf16 against fp32 0.024 in the farthest gradient, emulated FP8 against bf16 0.1 to 0.3). Routed
experts are compared in bf16 alone: FP8 sends some tokens to other experts, whose gradients then differ by 1.
The tiny model's widths are multiples of 16, as FP8 products need.

Written without a GPU and not run on one yet (docs/performance.md). Not covered: several GPUs, context parallelism.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny

from megatron_glmv.config.schema import Config, PrecisionConfig
from megatron_glmv.platform.device import select
from megatron_glmv.platform.features import te_usable

MODELS = {"GLM-4.5V": tiny.MODEL, "GLM-4.1V": tiny.DENSE}
LEARNING_STEPS = 20


@pytest.fixture(scope="module", autouse=True)
def needs_te() -> None:
    if not te_usable(select("auto")):
        pytest.skip("Transformer Engine is not usable here (glmv doctor says why)")


def config(model: Any, backend: str, recipe: str | None = None, fp8_backend: str = "te") -> Config:
    precision = PrecisionConfig(name="bf16")
    if recipe is not None:
        precision = PrecisionConfig(name="fp8", fp8_recipe=recipe, fp8_backend=fp8_backend)
    return replace(tiny.config(model, "bf16"), precision=precision, platform="cuda", backend=backend)


def loss_and_gradients(made: Config, number: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """Of one pack: its mean loss, and the gradient of each shard under its sharded key, on the CPU."""
    from megatron_glmv.stages.session import single_process

    with single_process(made) as session:
        from megatron_glmv.model.build import build_model, sharding_metadata
        from megatron_glmv.model.initialise import shards
        from megatron_glmv.precision.fp8 import transformer_fields
        from megatron_glmv.train.step import model_inputs, unwrap

        fp8 = transformer_fields(made.precision, session.backend, session.platform)
        (chunk,) = build_model(made, session.groups, backend=session.backend, device=session.device, fp8=fp8)
        assert session.backend == made.backend
        batch = tiny.pack(number)
        inputs = model_inputs(batch, session.device, unwrap(chunk).vision)
        weights = batch.loss_weights.to(session.device)
        losses = chunk(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)[0]
        loss = (losses.float() * weights).sum() / weights.sum()
        loss.backward()
        model = unwrap(chunk)
        with torch.no_grad():
            for parameter in model.parameters():  # the sharded state dict then holds gradients under the weights' keys
                parameter.copy_(parameter.grad if parameter.grad is not None else torch.zeros_like(parameter))
        state = model.sharded_state_dict(metadata=sharding_metadata(session.groups))
        gradients = {
            f"{shard.key} {shard.global_offset}": shard.data.detach().float().cpu().clone()
            for shard in shards(state)
            if shard.data is not None and not shard.key.endswith(("expert_bias", "_extra_state"))
        }
        return float(loss.detach()), gradients


def distances(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    return {k: float((ours[k] - theirs[k]).norm() / theirs[k].norm().clamp_min(1e-12)) for k in theirs}


def in_fp8(gradients: dict[str, Any]) -> list[str]:
    """Weights of a decoder layer that computes in FP8 under every recipe, without routed experts."""
    return [
        key
        for key in gradients
        if key.startswith("language.decoder.layers.1.") and "linear" in key and "experts.experts" not in key
    ]


@pytest.mark.parametrize("name", MODELS)
def test_te_layers_give_the_torch_layers_loss_and_gradients(name: str) -> None:
    torch_loss, torch_gradients = loss_and_gradients(config(MODELS[name], "torch"))
    te_loss, te_gradients = loss_and_gradients(config(MODELS[name], "te"))
    assert te_loss == pytest.approx(torch_loss, rel=5e-3)
    found = distances(te_gradients, torch_gradients)
    assert max(found.values()) > 0, "the same kernels ran twice"
    far = {key: value for key, value in found.items() if value > 0.08}
    assert far == {}


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_fp8_by_te_is_near_bf16_and_not_the_same(recipe: str) -> None:
    plain_loss, plain = loss_and_gradients(config(tiny.MODEL, "te"))
    fp8_loss, fp8 = loss_and_gradients(config(tiny.MODEL, "te", recipe))
    assert 0 < abs(fp8_loss - plain_loss) / plain_loss < 2e-2
    found = distances(fp8, plain)
    middle = [found[key] for key in in_fp8(found)]
    assert middle and min(middle) > 1e-2, "bf16 was computed: megatron-core ignored the recipe"
    assert max(value for key, value in found.items() if ".experts." not in key and ".router." not in key) < 0.5


@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise"])
def test_the_emulation_is_nearer_to_te_than_bf16_is(recipe: str) -> None:
    """Delayed scaling is left out: Transformer Engine starts its history with scale 1, the emulation does not."""
    _, bf16 = loss_and_gradients(config(tiny.MODEL, "te"))
    _, by_te = loss_and_gradients(config(tiny.MODEL, "te", recipe))
    _, emulated = loss_and_gradients(config(tiny.MODEL, "torch", recipe, "emulate"))
    near, far = distances(emulated, by_te), distances(bf16, by_te)
    keys = in_fp8(by_te)
    assert sum(near[key] for key in keys) < sum(far[key] for key in keys)


@pytest.mark.parametrize("recipe", [None, "delayed", "tensorwise", "blockwise"])
def test_te_layers_learn(recipe: str | None) -> None:
    """The whole step (DDP, distributed optimizer, clipping) on the same packs again and again."""
    from megatron_glmv.stages.parts import build_trainer
    from megatron_glmv.stages.session import single_process

    made = config(tiny.MODEL, "te", recipe)
    with single_process(made) as session:
        from megatron_glmv.train.optimizer import set_learning_rate

        trainer = build_trainer(made, session)
        set_learning_rate(trainer.optimizer, made.optim.lr)
        packs = [tiny.pack(number) for number in range(made.train.global_batch)]
        losses = [trainer.step(packs).loss for _ in range(LEARNING_STEPS)]
    assert losses[-1] < 0.9 * losses[0], losses

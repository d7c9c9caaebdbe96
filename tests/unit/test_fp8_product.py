"""Emulated FP8 products against torch's own, and their gradients against a reference written another way.

Derivation. With stored values X, W and scales s, t the product is sum_k X_ik W_jk / (s t): FP8 units multiply exactly
and add in fp32, so torch._scaled_mm and a fp32 product of the dequantised values differ by the order of summation
(measured 1e-7 of the largest output; bound 2e-6). Gradients are those of y = x w^T with each operand replaced by its
rounded one and rounding passed through: dx = q(g) q(w), dw = q(g)^T q(x).
One rounding to E4M3 is off by at most 2^-4 of a value that is not tiny, so that products of K random terms are off by
about 2^-4 x 0.6 x sqrt(2) / sqrt(K) of their norm's sqrt(K): 2 to 5 % in norm, and never 0: a recipe that did nothing
fails the lower bound.

Not covered: Transformer Engine's kernels (tests/gpu), whose scales are the same by construction and not by test.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from megatron_glmv.config.errors import ConfigError
from megatron_glmv.config.schema import PrecisionConfig
from megatron_glmv.platform.device import CPU
from megatron_glmv.precision.fp8 import KEPT, describe, in_bf16, transformer_fields
from megatron_glmv.precision.product import Fp8Product
from megatron_glmv.precision.quantize import E4M3, E5M2, largest, quantize, quantize_blocks, scale_for
from megatron_glmv.precision.recipes import RECIPES, Blockwise, Delayed, Past, Tensorwise

T, K, N = 48, 160, 96  # K and N are no multiples of 128: blocks at the edge are smaller


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, K], w [N, K], g [T, N]; columns of very different size, so that scales matter."""
    g = torch.Generator().manual_seed(3)
    spread = torch.exp(2 * torch.randn(K, generator=g))
    return (
        torch.randn(T, K, generator=g) * spread,
        torch.randn(N, K, generator=g) * 0.02,
        torch.randn(T, N, generator=g) * 1e-3,
    )


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensorwise_is_torchs_scaled_product(operands: tuple[torch.Tensor, ...], dtype: torch.dtype) -> None:
    x, w, _ = operands
    sx, sw = 448 / x.abs().max(), 448 / w.abs().max()
    by_torch = torch._scaled_mm(
        (x * sx).to(E4M3), (w * sw).to(E4M3).t(), scale_a=1 / sx, scale_b=1 / sw, out_dtype=torch.float32
    )
    ours = Fp8Product.apply(x.to(dtype)[:, None], w, Tensorwise(), True, False)[:, 0]
    if dtype == torch.float32:
        assert float((ours - by_torch).abs().max() / by_torch.abs().max()) < 2e-6
    else:  # x was rounded to bf16 before, y behind
        assert ours.dtype == dtype and off(ours.float(), by_torch) < 2e-2
    assert 5e-3 < off(by_torch, x @ w.t()) < 0.1  # and FP8 is what it is: not the product in fp32


def test_blocks_of_whole_rows_are_torchs_rowwise_product(operands: tuple[torch.Tensor, ...]) -> None:
    x, w, _ = operands
    qx, qw = (quantize_blocks(t, E4M3, (1, K), power_of_2=False) for t in (x, w))
    sx, sw = 448 / x.abs().amax(1, keepdim=True), 448 / w.abs().amax(1, keepdim=True)
    by_torch = torch._scaled_mm(
        (x * sx).to(E4M3), (w * sw).to(E4M3).t(), scale_a=1 / sx, scale_b=(1 / sw).t(), out_dtype=torch.bfloat16
    ).float()
    ours = qx.dequantize() @ qw.dequantize().t()
    assert float((ours - by_torch).abs().max() / by_torch.abs().max()) < 2**-8  # torch gives bf16 here


def test_blocks_have_their_own_power_of_two(operands: tuple[torch.Tensor, ...]) -> None:
    x, w, _ = operands
    for tensor, block in ((x, (1, 128)), (x, (128, 1)), (w, (128, 128))):
        q = quantize_blocks(tensor, E4M3, block)
        back = q.dequantize()
        assert torch.equal(torch.log2(q.scale), torch.log2(q.scale).round())
        for i in range(0, tensor.shape[0], block[0]):
            for j in range(0, tensor.shape[1], block[1]):
                part = tensor[i : i + block[0], j : j + block[1]]
                scale = q.scale[i // block[0], j // block[1]]
                assert 224 < float(part.abs().max() * scale) <= 448
                assert torch.equal((part * scale).to(E4M3).float() / scale, back[i : i + block[0], j : j + block[1]])


def test_what_is_too_large_is_cut_off_and_what_is_not_finite_stays() -> None:
    for dtype, most in ((E4M3, 448.0), (E5M2, 57344.0)):
        q = quantize(torch.tensor([[1e9, -1e9, 0.0, 1.0]]), dtype, torch.ones(()))
        assert q.dequantize().tolist() == [[most, -most, 0.0, 1.0]]
        assert torch.isnan(quantize(torch.tensor([[float("nan")]]), dtype, torch.ones(())).dequantize()).all()
    assert float(scale_for(torch.zeros(()), E4M3)) == 1.0
    assert float(largest(torch.empty(0, 4))) == 0.0


def _by_hand(name: str) -> Callable[[torch.Tensor, str], torch.Tensor]:
    """What a recipe rounds an operand to (x, w, g; xt and gt for the weight's gradient), straight from its words."""

    def rounded(t: torch.Tensor, most: float, dtype: torch.dtype) -> torch.Tensor:
        scale = most / t.abs().max()
        return (t * scale).to(dtype).float() / scale

    def strips(t: torch.Tensor) -> torch.Tensor:  # 1 x 128 along the last dimension
        out = torch.empty_like(t)
        for i in range(t.shape[0]):
            for j in range(0, t.shape[1], 128):
                part = t[i, j : j + 128]
                scale = 2.0 ** torch.floor(torch.log2(448 / part.abs().max()))
                out[i, j : j + 128] = (part * scale).to(E4M3).float() / scale
        return out

    def tiles(t: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(t)
        for i in range(0, t.shape[0], 128):
            for j in range(0, t.shape[1], 128):
                part = t[i : i + 128, j : j + 128]
                scale = 2.0 ** torch.floor(torch.log2(448 / part.abs().max()))
                out[i : i + 128, j : j + 128] = (part * scale).to(E4M3).float() / scale
        return out

    if name == "blockwise":
        return lambda t, role: tiles(t) if role == "w" else strips(t.t()).t() if role.endswith("t") else strips(t)
    return lambda t, role: rounded(t, 57344.0, E5M2) if role[0] == "g" else rounded(t, 448.0, E4M3)


@pytest.mark.parametrize("name", ["tensorwise", "blockwise", "delayed"])
def test_gradients_are_those_of_rounded_operands_passed_through(operands: tuple[torch.Tensor, ...], name: str) -> None:
    x, w, g = operands
    x, w = x.requires_grad_(), w.requires_grad_()
    y = Fp8Product.apply(x[:, None], w, RECIPES[name](), True, False)
    y.backward(g[:, None])
    q = _by_hand(name)  # the first call of delayed scaling has no past: as tensorwise
    with torch.no_grad():
        assert off(y[:, 0], q(x, "x") @ q(w, "w").t()) < 1e-6
        assert off(x.grad, q(g, "g") @ q(w, "w")) < 1e-6
        assert off(w.grad, q(g, "gt").t() @ q(x, "xt")) < 1e-6
        # Neither the same as without FP8, nor far from it.
        for ours, plain in ((y[:, 0], x @ w.t()), (x.grad, g @ w), (w.grad, g.t() @ x)):
            assert 5e-3 < off(ours, plain) < 0.15


def test_delayed_scaling_takes_its_scale_from_the_past(operands: tuple[torch.Tensor, ...]) -> None:
    x, w, _ = operands
    recipe = Delayed(length=2)

    def call(factor: float) -> torch.Tensor:
        return recipe.forward(x * factor, w, training=True, recomputed=False).x.dequantize()

    first = call(1.0)
    assert float(first.abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)
    # Ten times as large: cut off at what was seen before. Tensorwise would keep it.
    assert float(call(10.0).abs().max()) == pytest.approx(float(x.abs().max()), rel=1e-6)
    assert float(call(10.0).abs().max()) == pytest.approx(10 * float(x.abs().max()), rel=1e-6)
    # The window is two calls long: after two small ones the large one is forgotten.
    call(1.0), call(1.0)
    assert float(recipe.x.scale(x)) == pytest.approx(448 / float(x.abs().max()), rel=1e-6)


def test_delayed_scaling_remembers_a_recomputed_pass_once_and_rounds_it_alike(
    operands: tuple[torch.Tensor, ...],
) -> None:
    x, w, _ = operands
    recipe = Delayed()
    recipe.forward(x, w, training=True, recomputed=False)
    first = [recipe.forward(x * f, w, training=True, recomputed=True) for f in (2.0, 4.0)]  # two micro-batches
    assert recipe.x.count == 3
    again = [recipe.forward(x * f, w, training=True, recomputed=False) for f in (2.0, 4.0)]
    assert recipe.x.count == 3
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.x.dequantize(), other.x.dequantize())
    assert not torch.equal(first[0].x.scale, first[1].x.scale)  # so the order matters
    recipe.forward(x * 100, w, training=False, recomputed=False)
    assert recipe.x.count == 3  # evaluation is not remembered


def test_an_expert_without_tokens_has_an_output_and_gradients() -> None:
    w = torch.randn(N, K, requires_grad=True)
    for name in RECIPES:
        recipe = RECIPES[name]()
        x = torch.empty(0, 1, K, requires_grad=True)
        y = Fp8Product.apply(x, w, recipe, True, False)
        y.sum().backward()
        assert y.shape == (0, 1, N) and x.grad is not None and float(w.grad.abs().max()) == 0.0
        if isinstance(recipe, Delayed):
            assert recipe.x.count == recipe.g.count == 0  # nothing seen is nothing remembered
    assert float(Past(E4M3).scale(torch.empty(0, 4))) == 1.0


def test_fp8_is_refused_with_its_option_where_it_cannot_run_and_emulated_by_name() -> None:
    by_te = PrecisionConfig(name="fp8", fp8_backend="te")
    with pytest.raises(ConfigError, match=r"precision.fp8_backend=te: needs a CUDA GPU.*precision.fp8_backend=emulate"):
        transformer_fields(by_te, "torch", CPU)
    emulated = PrecisionConfig(name="fp8", fp8_backend="emulate")
    assert transformer_fields(emulated, "torch", CPU) == {}
    with pytest.raises(ConfigError, match="backend=te"):
        transformer_fields(emulated, "te", CPU)
    for recipe in RECIPES:
        fields = transformer_fields(PrecisionConfig(name="fp8", fp8_recipe=recipe), "te", CPU)
        # megatron-core refuses bf16 layers at the ends with delayed scaling.
        assert fields["fp8_recipe"] == recipe and fields["first_last_layers_bf16"] == (recipe != "delayed")
        # The same formats as the emulation: E5M2 gradients, except in blocks.
        assert fields["fp8"] == ("e4m3" if RECIPES[recipe] is Blockwise else "hybrid")
    assert describe(PrecisionConfig(name="bf16")) == []
    lines = describe(emulated)
    assert "EMULATED" in lines[0] and len(lines) == 2 + len(KEPT)
    assert [in_bf16(layer, 5, "blockwise") for layer in range(5)] == [True, False, False, False, True]
    assert not any(in_bf16(layer, 5, "delayed") for layer in range(5))

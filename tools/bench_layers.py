"""Speed of decoder layers of real width in bf16 and FP8: tokens a second, TFLOP/s and MFU, all rows from one run.

    python tools/bench_layers.py                                   # GLM-4.5V's sparse layers, on a GPU
    python tools/bench_layers.py --model glm41v --tokens 16384
    python tools/bench_layers.py --model tiny_glm45v --tokens 256  # anywhere: a check that it runs, no speed

One process; forward and backward of `--layers` equal layers (the sparse ones of a MoE model) on packs of random hidden
states, without embedding, output layer, optimizer or communication. FP8 is Transformer Engine's where it is usable,
with every layer in FP8, else the emulation, which is slower than bf16. Model FLOPs count matrix products and causal
attention once forward and twice backward; MFU divides by the peak of bf16 for every row, so that rows compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from typing import Any

import torch

from megatron_glmv.config.load import compose
from megatron_glmv.config.schema import Config, PrecisionConfig, TextConfig
from megatron_glmv.precision.fp8 import transformer_fields

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0}
"""Dense bf16 peaks by NVIDIA's data sheets, by a word in the device's name; for SXM boards."""


def layer_flops(text: TextConfig, segment: int) -> float:
    """FLOPs of one token forward through one layer: sparse where the model has experts, with causal segments."""
    heads = text.heads * text.head_dim
    products = text.hidden * (heads + 2 * text.kv_heads * text.head_dim) + heads * text.hidden
    if text.moe is None:
        products += 3 * text.hidden * text.ffn
    else:
        products += 3 * text.hidden * (text.moe.topk * text.moe.ffn + text.moe.shared_ffn)
        products += text.hidden * text.moe.experts
    scores = 2 * heads * (segment + 1) / 2  # q k^T and its product with v, over half of the square
    return 2.0 * (products + scores)


def sized(model: str, layers: int, precision: PrecisionConfig, tokens: int) -> Config:
    """The config of `layers` equal layers of a model."""
    config = compose(["experiment=tiny_pretrain", f"model={model}", "data.path=unused"])
    moe = config.model.text.moe and dataclasses.replace(config.model.text.moe, first_dense=0, aux_loss=0.0)
    text = dataclasses.replace(config.model.text, layers=layers, moe=moe)
    data = dataclasses.replace(config.data, pack_tokens=tokens)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, text=text), precision=precision, data=data
    )


def measure(config: Config, session: Any, segment: int, steps: int) -> tuple[float, float]:
    """Seconds of one forward and backward pass (median of `steps`, two more before them), and the largest memory in
    GiB (0 without a GPU)."""
    from megatron_glmv.model.config import text_transformer_config
    from megatron_glmv.model.glmv import GLMV
    from megatron_glmv.model.packed import packed_segments
    from megatron_glmv.model.specs import decoder_block_spec, provider

    fp8 = transformer_fields(config.precision, session.backend, session.platform)
    edges = {"first_last_layers_bf16": False, "num_layers_at_start_in_bf16": 0, "num_layers_at_end_in_bf16": 0}
    text_config = text_transformer_config(config, session.groups.topology, {**fp8, **edges} if fp8 else {})
    backend, text = provider(session.backend), config.model.text
    # As if in the middle of a deep model, so that no layer is an edge of the emulation.
    deep = dataclasses.replace(text, layers=text.layers + 2)
    spec = decoder_block_spec(deep, backend, 1, text.layers, config.precision)
    model = GLMV(
        config.model,
        text_config,
        text_config,
        spec,
        backend,
        session.groups,
        pre_process=False,
        post_process=False,
        vp_stage=None,
        encoder_data=False,
        encoder_tensor=False,
    ).to(session.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name else parameter.normal_(0.0, text.init_std)
    model.to(torch.bfloat16).train()
    tokens = config.data.pack_tokens
    hidden = torch.randn(tokens, 1, text.hidden, device=session.device, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.zeros(1, tokens, dtype=torch.int64, device=session.device)
    positions = (torch.arange(tokens) % segment).expand(3, 1, tokens).to(session.device)
    ends = torch.arange(0, tokens + 1, segment, dtype=torch.int32, device=session.device)
    times = []
    for _ in range(steps + 2):
        _wait(session.device)
        began = time.perf_counter()
        model.set_input_tensor(hidden)
        output = model(ids, positions, packed_seq_params=packed_segments(ends))
        output.backward(torch.ones_like(output))
        _wait(session.device)
        times.append(time.perf_counter() - began)
        model.zero_grad(set_to_none=True)
        hidden.grad = None
    memory = torch.cuda.max_memory_allocated() / 2**30 if session.device.type == "cuda" else 0.0
    return sorted(times[2:])[steps // 2], memory


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="glm45v")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8192, help="of one pack")
    parser.add_argument("--segment", type=int, default=0, help="tokens of one sample in it; 0: one sample a pack")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--recipes", nargs="+", default=["bf16", "delayed", "tensorwise", "blockwise"])
    options = parser.parse_args(arguments)
    segment = options.segment or options.tokens

    from megatron_glmv.stages.session import single_process

    print(f"{options.layers} layers of {options.model}, packs of {options.tokens} tokens in samples of {segment}")
    reference = None
    for recipe in options.recipes:
        name = "bf16" if recipe == "bf16" else "fp8"
        for by in ("te", "emulate") if name == "fp8" else ("te",):
            precision = PrecisionConfig(name=name, fp8_backend=by, **({"fp8_recipe": recipe} if name == "fp8" else {}))
            config = sized(options.model, options.layers, precision, options.tokens)
            with single_process(config) as session:
                if name == "fp8" and (by == "te") != (session.backend == "te"):
                    continue  # Transformer Engine where it is usable, the emulation elsewhere
                seconds, memory = measure(config, session, segment, options.steps)
                device, backend = session.device, session.backend
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            if reference is None:
                print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, layers by {backend}")
                print(f"{'':24} {'ms':>9} {'tokens/s':>10} {'TFLOP/s':>8} {'MFU':>6} {'x first':>8} {'GiB':>6}")
            reference = reference or seconds
            flops = 3 * layer_flops(config.model.text, segment) * options.layers * options.tokens / seconds / 1e12
            peak = _peak(device)
            mfu = f"{flops / peak:6.1%}" if peak else "  none"
            title = recipe if name == "bf16" or by == "te" else f"{recipe}, emulated"
            print(
                f"{title:24} {seconds * 1e3:9.2f} {options.tokens / seconds:10.0f} {flops:8.2f} {mfu} "
                f"{reference / seconds:8.2f} {memory:6.1f}",
                flush=True,
            )
            if name == "fp8":
                break
    return 0


def _peak(device: torch.device) -> float:
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return next((peak for word, peak in PEAK_TFLOPS.items() if word in name), 0.0)


if __name__ == "__main__":
    sys.exit(main())

"""The real models, parameter by parameter, without their memory.

A parameter is made on the meta device wherever megatron-core or we ask torch for an array; the counts are those of the
official GLM-4.5V checkpoint (107,710,933,120 elements, 5,760 of them expert biases) and of transformers' GLM-4.1V-9B.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from megatron_glmv.config.load import compose
from megatron_glmv.stages.session import single_process

PARAMETERS = {"glm45v": 107_710_927_360, "glm41v": 10_292_777_472}
BUFFERS = {"glm45v": 5_760, "glm41v": 0}
HIDDEN, EXPERTS = 4096, 128
ATTENTION = (2 * 96 + 2 * 8) * 128 * HIDDEN + (96 + 2 * 8) * 128
PREDICTION = ATTENTION + HIDDEN * (EXPERTS + 3 * 1408 * (EXPERTS + 1)) + 2 * HIDDEN + 2 * HIDDEN**2 + 3 * HIDDEN
"""Of a prediction layer like Air's: attention with biases, router, experts with the shared one, the norms in front of
both, the projection of two vectors to one, and its three norms. Embedding and head are the model's."""


class OnMeta(TorchFunctionMode):
    """Arrays without memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in ("empty", "zeros", "ones"):  # by name: the platform wraps these functions
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@pytest.mark.parametrize("name, layers", [("glm45v", 0), ("glm41v", 0), ("glm45v", 1)])
def test_full_size_models_have_exactly_the_published_parameters(name: str, layers: int) -> None:
    options = [f"model={name}", f"model.mtp.layers={layers}", "platform=cpu", "backend=torch", "precision=bf16"]
    config = compose(["experiment=tiny_pretrain", *options])
    with single_process(config) as session:
        from megatron_glmv.model.build import build_chunk
        from megatron_glmv.model.config import text_transformer_config

        text = text_transformer_config(config, session.groups.topology)
        with OnMeta():
            model = build_chunk(config, session.groups, text, "torch", None)
    parameters = dict(model.named_parameters())
    assert [n for n, parameter in parameters.items() if not parameter.is_meta] == []
    assert sum(parameter.numel() for parameter in parameters.values()) == PARAMETERS[name] + layers * PREDICTION
    biases = [buffer for name, buffer in model.named_buffers() if name.endswith("expert_bias")]
    assert sum(bias.numel() for bias in biases) == BUFFERS[name] + layers * EXPERTS
    assert all(bias.dtype == torch.float32 for bias in biases)

"""FP8 without FP8 hardware: megatron-core's linear layers with every operand rounded to FP8 and back.

It tells what FP8 does to a loss curve; it is slower than bf16 and saves no memory.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)

from megatron_glmv.precision.product import Fp8Product
from megatron_glmv.precision.recipes import RECIPES, Recipe


class Fp8Linear:
    """In front of megatron-core's Column- or RowParallelLinear: its matrix product becomes an FP8 one.

    Tensor and sequence parallel communication stays in bf16, and is rounded behind it: under sequence parallelism the
    scale is that of the whole sequence, as on one rank. Gradients reach main_grad through megatron-core's hooks.
    """

    recipe_name: str
    fp8: Recipe
    training: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp8 = RECIPES[self.recipe_name]()

    def _forward_impl(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        gradient_accumulation_fusion: bool,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        if gradient_accumulation_fusion:
            raise NotImplementedError("emulated FP8 does not add weight gradients to main_grad itself")
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, tensor_parallel_output_grad=True, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        # In the first pass of a recomputed layer gradients are off although the model trains.
        recomputed = self.training and not torch.is_grad_enabled()
        y: torch.Tensor = Fp8Product.apply(input, weight, self.fp8, self.training, recomputed)  # type: ignore[no-untyped-call]
        return y if bias is None else y + bias


@cache
def emulated_linears(recipe: str) -> tuple[type, type]:
    """Column- and row-parallel layers that compute in emulated FP8 by a recipe's name."""
    column = type("Fp8ColumnParallelLinear", (Fp8Linear, ColumnParallelLinear), {"recipe_name": recipe})
    row = type("Fp8RowParallelLinear", (Fp8Linear, RowParallelLinear), {"recipe_name": recipe})
    return column, row

"""One optimizer step: micro-batches through megatron-core's schedule, one global weight, one update.

Shapes: T tokens of a pack, R context-parallel ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_glmv.data.patches import normalise
from megatron_glmv.data.types import PackedBatch
from megatron_glmv.model.glmv import VisualInput
from megatron_glmv.model.packed import PackedSegments, packed_segments
from megatron_glmv.model.prediction import Ahead, following
from megatron_glmv.model.router import routing_mask, samples_in, segment_of_token, set_balance_scale
from megatron_glmv.model.vision import VisionEncoder
from megatron_glmv.parallel.groups import Groups, device_sum
from megatron_glmv.train.losses import FurtherLoss, weighted_sum


@dataclass(frozen=True)
class StepResult:
    """Equal on every rank."""

    loss: float
    """Mean over the global batch, by loss weight."""
    grad_norm: float
    """Before clipping."""
    tokens: int
    samples: int
    stop_requested: bool
    """Some rank asked to stop after this step."""
    further_loss: float | None = None
    """Of the prediction layer, mean by its own weights; None without one."""


class DivergedError(RuntimeError):
    """The loss or the gradient is not finite; nothing was saved after it."""

    exit_code = 76


def unwrap(chunk: Any) -> Any:
    """The GLMV inside DDP and the bf16 wrapper."""
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk


Context = tuple[int, int]
"""Index of this context-parallel rank, and their number."""


@dataclass(frozen=True, kw_only=True)
class BatchPart(PackedBatch):
    """A micro-batch with the tokens of this context-parallel rank only: [T] fields of the batch are [T / R] here.
    Geometry (cu_seqlens, grids, visual positions) and pixels are those of the whole pack."""

    tokens: torch.Tensor
    """[T / R] int64: where these tokens are in the pack."""
    segments: torch.Tensor
    """[T / R] int64: the segment of each."""


Reduce = Callable[[BatchPart, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(this rank's tokens, their losses [T / R]) -> the micro-batch's loss sum, and what the schedule collects of it."""


Routes = Callable[[PackedBatch], torch.Tensor]
"""A whole pack -> rows of its routing mask, [rows, T] bool."""


def context_part(batch: PackedBatch, geometry: PackedSegments) -> BatchPart:
    """Each token keeps its rotary positions within its sample."""
    split = geometry.split
    whole = {field.name: getattr(batch, field.name) for field in fields(PackedBatch)}
    of_tokens = ("input_ids", "labels", "loss_weights", "position_ids", "padding")
    return BatchPart(
        **(whole | {name: split.take(whole[name]) for name in of_tokens}),
        tokens=split.mine,
        segments=split.take(segment_of_token(batch.cu_seqlens)),
    )


def model_inputs(
    batch: PackedBatch,
    device: torch.device,
    encoder: VisionEncoder | None,
    context: Context = (0, 1),
    ahead: bool = False,
    replayed: torch.Tensor | None = None,
) -> dict[str, Any]:
    """A pack as the arguments of GLMV.forward, on the device, pixels normalised there; none without an encoder.
    `ahead`: with what a prediction layer is given. `replayed` [rows, T]: choices of experts (model/replay.py)."""
    geometry = packed_segments(batch.cu_seqlens.to(device), context)
    part = context_part(batch, geometry)
    visual = None
    if encoder is not None:
        visual = VisualInput(
            pixel_values=normalise(batch.pixel_values.to(device), encoder.vision),
            grids=batch.grids,
            positions=batch.visual_positions,
        )
    inputs: dict[str, Any] = {"ahead": what_lies_ahead(batch, geometry, device)} if ahead else {}
    return inputs | {
        "input_ids": part.input_ids.to(device)[None],
        "position_ids": part.position_ids.to(device)[:, None],
        "labels": part.labels.to(device)[None],
        "visual": visual,
        "packed_seq_params": geometry,
        "padding_mask": routing_mask(
            part.padding,
            part.segments,
            len(batch.cu_seqlens) - 1,
            None if replayed is None else replayed[:, part.tokens.to(replayed.device)],
        ).to(device),
    }


def what_lies_ahead(batch: PackedBatch, geometry: PackedSegments, device: torch.device) -> Ahead:
    """Of this context-parallel rank's tokens."""
    split = geometry.split
    found = following(batch.input_ids, batch.labels, batch.loss_weights, batch.padding, batch.cu_seqlens)
    segments, count = split.take(segment_of_token(batch.cu_seqlens)), len(batch.cu_seqlens) - 1
    return Ahead(
        input_ids=split.take(found.input_ids).to(device)[None],
        labels=split.take(found.labels).to(device)[None],
        loss_weights=split.take(found.loss_weights).to(device),
        padding_mask=routing_mask(split.take(found.absent), segments, count).to(device),
    )


def forward_micro_batch(
    reduce: Reduce,
    further: FurtherLoss | None,
    device: torch.device,
    context: Context,
    batches: Iterator[PackedBatch],
    model: Any,
    *,
    routes: Routes | None = None,
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """The forward function that megatron-core's schedules call. `further`: takes a prediction layer's losses, which
    are not computed without it. `routes`: choices of experts to be replayed."""
    batch = next(batches)
    chunk = unwrap(model)
    ahead = further is not None and chunk.predicts
    replayed = None if routes is None else routes(batch)
    inputs = model_inputs(batch, device, chunk.vision, context, ahead, replayed)
    geometry = inputs["packed_seq_params"]
    output = model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)

    def loss_function(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total, collected = reduce(context_part(batch, geometry), losses[0])
        if further is not None and ahead:
            total = total + further.add(losses[1], inputs["ahead"].loss_weights)
        return total, torch.zeros((), dtype=torch.int, device=losses.device), collected

    return output, loss_function


def loss_and_report(batch: BatchPart, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    total = weighted_sum(losses, batch.loss_weights.to(losses.device))
    return total, total.detach().double()


REDUCED_AT_ONCE = 1 << 25
"""Elements (128 MiB in fp32)."""


def reduce_encoder_gradients(chunks: list[Any], group: Any) -> None:
    """Sums the encoder's gradients over the tensor-parallel ranks, where each has a part of them.

    The factor. A visual token is fused on exactly one rank of tensor x context (under sequence parallelism), so its
    gradient reaches the encoder of exactly one rank: of the one that encoded its frame, or, replicated, of the one that
    fused it. The gradient of a pack is therefore the plain sum over tensor x context. The data-parallel reduction sums
    over data x context already (parameters that are not sharded belong to that group, and nothing is averaged where
    losses are normalised by tokens), so what is left is the sum over tensor ranks, factor 1. With the encoder
    replicated and no sequence parallelism every tensor rank fuses all tokens and has the whole sum: nothing is left.
    """
    gradients = [
        parameter.main_grad
        for chunk in chunks
        if unwrap(chunk).vision is not None and unwrap(chunk).encoder_gradients_partial
        for parameter in unwrap(chunk).vision.parameters()
        if parameter.requires_grad
    ]
    while gradients:
        together: list[torch.Tensor] = []
        elements = 0
        while gradients and (not together or elements + gradients[0].numel() <= REDUCED_AT_ONCE):
            elements += gradients[0].numel()
            together.append(gradients.pop(0))
        flat = torch.cat([gradient.flatten() for gradient in together])
        dist.all_reduce(flat, group=group)
        for gradient, part in zip(together, torch.split(flat, [g.numel() for g in together]), strict=True):
            gradient.copy_(part.view_as(gradient))


class Trainer:
    """The model, its optimizer and the schedule that runs them."""

    def __init__(
        self, chunks: list[Any], optimizer: Any, groups: Groups, device: torch.device, pack_tokens: int
    ) -> None:
        self.chunks, self.optimizer, self.groups, self.device = chunks, optimizer, groups, device
        self.pack_tokens = pack_tokens
        self.progress: Callable[[str], None] = lambda where: None
        """Told of each micro-batch before it is computed."""
        self.routes: Routes | None = None
        """Choices of experts to be replayed in each micro-batch (model/replay.py)."""
        self._weight = 1.0
        mtp = unwrap(chunks[0]).prediction
        self.further = FurtherLoss(mtp.loss_weight) if mtp.layers else None
        self._schedule = get_forward_backward_func()
        config = chunks[0].config
        config.finalize_model_grads_func = self._finalize
        config.grad_scale_func = optimizer.scale_loss
        if chunks[0].ddp_config.overlap_grad_reduce:
            one = len(chunks) == 1
            config.no_sync_func = chunks[0].no_sync if one else [c.no_sync for c in chunks]
            if not one:
                config.grad_sync_func = [c.start_grad_sync for c in chunks]
                if chunks[0].ddp_config.overlap_param_gather:
                    config.param_sync_func = [c.start_param_sync for c in chunks]

    def _finalize(
        self, chunks: list[Any], _: Any = None, pg_collection: Any = None, force_all_reduce: bool = False
    ) -> None:
        """megatron-core's reductions, then the encoder's, then the division by the weight of the global batch."""
        finalize_model_grads(chunks, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce)
        reduce_encoder_gradients(chunks, self.groups.tp)
        for chunk in chunks:
            chunk.scale_gradients(1.0 / self._weight)

    def forward_backward(self, batches: list[PackedBatch], reduce: Reduce, *, forward_only: bool) -> list[Any]:
        """Runs the micro-batches; returns what `reduce` collected, on the last pipeline stage. A prediction layer
        takes part in training only."""
        further = None if forward_only else self.further
        return self._schedule(  # type: ignore[no-any-return]
            forward_step_func=partial(
                forward_micro_batch,
                reduce,
                further,
                self.device,
                (self.groups.cp.rank(), self.groups.cp.size()),
                routes=self.routes,
            ),
            data_iterator=[self._told(batches) for _ in self.chunks] if len(self.chunks) > 1 else self._told(batches),
            model=self.chunks,
            num_microbatches=len(batches),
            seq_length=self.pack_tokens,
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def _told(self, batches: list[PackedBatch]) -> Iterator[PackedBatch]:
        for number, batch in enumerate(batches, start=1):
            self.progress(f"micro-batch {number} of {len(batches)}, samples {', '.join(batch.sample_ids)}")
            yield batch

    def step(self, batches: list[PackedBatch], *, stop_requested: bool = False) -> StepResult:
        """Trains on the global batch of which `batches` are this replica's packs. Raises DivergedError on every
        rank."""
        counts = [
            sum(float(batch.loss_weights.sum()) for batch in batches),
            sum(int((~batch.padding).sum()) for batch in batches),
            sum(samples_in(batch.padding, batch.cu_seqlens) for batch in batches),
        ]
        weight, tokens, samples = device_sum(counts, self.groups.dp, self.device)  # batches are whole packs everywhere
        collected = self.accumulate(batches, loss_and_report, weight, samples)

        counted = self.groups.last_stage and self.groups.tp.rank() == 0
        ahead = self.further.sums.tolist() if self.further and counted else [0.0, 0.0]
        loss_sum, stop, *ahead = device_sum(
            [float(sum(collected)) if counted else 0.0, float(stop_requested), *ahead], None, self.device
        )
        loss = loss_sum / self._weight
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss}")
        grad_norm = self.update()
        further = ahead[0] / max(ahead[1], 1e-12) if self.further else None
        return StepResult(loss, grad_norm, round(tokens), round(samples), stop > 0, further)

    def accumulate(self, batches: list[PackedBatch], reduce: Reduce, weight: float, samples: float | None) -> list[Any]:
        """Gradients of the sum of what `reduce` gives for each of this replica's packs, divided by `weight`, that of
        the global batch. `samples` of the global batch scale the balance loss; None: there is none. Returns what
        `reduce` collected, on the last pipeline stage."""
        self._weight = max(weight, 1e-12)
        set_balance_scale(self.chunks, self._weight / max(samples, 1.0) if samples is not None else 0.0)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        if self.further:
            self.further.reset()
        return self.forward_backward(batches, reduce, forward_only=False)

    def update(self) -> float:
        """One step of the optimizer with the accumulated gradients; their norm before clipping. Raises DivergedError
        on every rank."""
        _, grad_norm, _ = self.optimizer.step()
        if not math.isfinite(float(grad_norm)):
            raise DivergedError(f"the gradient norm is {float(grad_norm)}")
        return float(grad_norm)

    def start_reading_weights(self) -> None:
        """With overlapped parameter gathering, other ranks' parameters are one step old until the next forward pass:
        gather them before weights are saved or evaluated."""
        if self.chunks[0].ddp_config.overlap_param_gather:
            for chunk in self.chunks:
                chunk.disable_forward_pre_hook()

    def done_reading_weights(self) -> None:
        if self.chunks[0].ddp_config.overlap_param_gather:
            for chunk in self.chunks:
                chunk.enable_forward_pre_hook()

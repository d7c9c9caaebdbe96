"""One rank of `glmv score`: the checkpoint's model under any layout, one pass over the rows, gradients where asked.

Rows are dealt to data-parallel ranks in turn; each is a micro-batch of megatron-core's schedule. What a row's last
pipeline stage computed goes through a folder that all ranks share, as checkpoints do.

Shapes: T tokens of a pack, R context-parallel ranks, W vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from safetensors.torch import save_file

from megatron_glmv.checkpoint.manager import CheckpointManager, Identity
from megatron_glmv.checkpoint.reader import Checkpoint
from megatron_glmv.config.schema import CheckpointConfig, Config
from megatron_glmv.inference.score_inputs import Row, ScoreInput, as_pack
from megatron_glmv.model.build import build_model, sharding_metadata
from megatron_glmv.stages.session import Session
from megatron_glmv.train.losses import weighted_sum
from megatron_glmv.train.step import context_part, model_inputs, reduce_encoder_gradients, unwrap


class Scorer:
    """The chunks of this rank, without an optimizer."""

    def __init__(self, config: Config, session: Session, checkpoint: Checkpoint, verify: bool, gradients: bool) -> None:
        self.config, self.groups, self.device, self.gradients = config, session.groups, session.device, gradients
        self._checkpoint = checkpoint
        chunks = build_model(config, session.groups, backend=session.backend, device=session.device)
        self._manager(checkpoint.path.parent, verify).load_weights(checkpoint.path, chunks)
        if gradients:
            # All-reduced, not scattered as in training: each rank then has the whole gradient of what it holds.
            ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=False)
            chunks = [DistributedDataParallel(c.config, ddp, c, disable_bucketing=True) for c in chunks]
            chunks[0].config.finalize_model_grads_func = self._finalize
        self.chunks = chunks
        self._predicted = 1

    def _manager(self, root: Path, verify: bool) -> CheckpointManager:
        """Reads and writes checkpoints with the identity of the one that is scored."""
        manifest = self._checkpoint.manifest
        identity = Identity(
            model=manifest.model,
            tokenizer_fingerprint=manifest.tokenizer_fingerprint,
            config_fingerprint=manifest.config_fingerprint,
        )
        topology, metadata = self.groups.topology.to_json(), sharding_metadata(self.groups)
        return CheckpointManager(root, CheckpointConfig(verify=verify), identity, topology, metadata)

    def run(self, batch: ScoreInput, folder: Path, logits: bool) -> float:
        """One pass over all rows; the sum of -logprobs over predicted tokens, on every rank. Writes what it has of
        row N as `row_N_R.safetensors` into `folder`, R its context-parallel index."""
        topology = self.groups.topology
        unit = topology.data * (topology.pipeline if topology.virtual_pipeline > 1 else 1)
        dealt: list[Row | None] = [*batch.rows, *[None] * (-len(batch.rows) % unit)]
        mine = dealt[self.groups.dp_rank :: topology.data]
        self._predicted = max(batch.predicted, 1)
        for chunk in self.chunks if self.gradients else []:
            chunk.zero_grad_buffer()

        def forward(rows: Iterator[Row | None], model: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
            return self._forward(rows, model, folder, logits)

        with torch.set_grad_enabled(self.gradients):
            found = get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=[iter(mine) for _ in self.chunks] if len(self.chunks) > 1 else iter(mine),
                model=self.chunks,
                num_microbatches=len(mine),
                seq_length=self.config.data.pack_tokens,
                micro_batch_size=1,
                forward_only=not self.gradients,
            )
        counted = self.groups.last_stage and self.groups.tp.rank() == 0
        total = torch.tensor(float(sum(found)) if counted else 0.0, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)  # every rank has written its rows: the sum waited for all of them

    def _forward(
        self, rows: Iterator[Row | None], model: Any, folder: Path, keep_logits: bool
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        row = next(rows)
        chunk = unwrap(model)
        batch = as_pack(row, self.config.data.pack_tokens, self.config.model.vision.patch_values)
        inputs = model_inputs(batch, self.device, chunk.vision, (self.groups.cp.rank(), self.groups.cp.size()))
        labels, visual = inputs.pop("labels"), inputs["visual"]
        part = context_part(batch, inputs["packed_seq_params"])
        if visual is not None and row is not None:
            inputs["visual"] = dataclasses.replace(visual, pixel_values=row.pixel_values.to(self.device))
        output = model(inputs.pop("input_ids"), inputs.pop("position_ids"), **inputs)

        def losses(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """logits [1, T / R, W / tensor ranks] -> loss sum, and what the schedule collects."""
            kept = self._whole(logits.detach()) if keep_logits else None  # before the loss, which works in place
            by_token = chunk.language.compute_language_model_loss(labels, logits.transpose(0, 1).contiguous())[0]
            if row is not None and self.groups.tp.rank() == 0:
                self._write(folder, row, part.tokens, -by_token.detach(), kept)
            total = weighted_sum(by_token, part.loss_weights.to(by_token.device))
            return total, torch.zeros((), dtype=torch.int, device=total.device), total.detach().double()

        return output, losses

    def _whole(self, logits: torch.Tensor) -> torch.Tensor:
        """[1, T / R, W / tensor ranks] of this rank -> [T / R, W] fp32, a copy."""
        whole: torch.Tensor = gather_from_tensor_model_parallel_region(logits, self.groups.tp)
        return whole[0].float().clone()

    def _write(
        self, folder: Path, row: Row, tokens: torch.Tensor, logprobs: torch.Tensor, logits: torch.Tensor | None
    ) -> None:
        """What this context-parallel rank has of a row: [n] tokens by their index in the row, and their values."""
        tokens = tokens.cpu()
        real = (tokens < len(row)).nonzero().flatten()
        made = {"tokens": tokens[real], "logprobs": logprobs.float().cpu()[real]}
        if logits is not None:
            made["logits"] = logits.cpu()[real]
        save_file(made, folder / f"row_{row.number}_{self.groups.cp.rank()}.safetensors")

    def _finalize(
        self, chunks: list[Any], _: Any = None, pg_collection: Any = None, force_all_reduce: bool = False
    ) -> None:
        """Reductions as in training, then from the sum over tokens to their mean."""
        finalize_model_grads(chunks, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce)
        reduce_encoder_gradients(chunks, self.groups.tp)
        for chunk in chunks:
            chunk.scale_gradients(1.0 / self._predicted)

    def save_gradients(self, root: Path) -> Path:
        """Writes a checkpoint whose weights are the gradients, below `root`: to put together shards of any layout is
        what checkpoints are for. The weights themselves are gone afterwards."""
        for chunk in self.chunks:
            for parameter in chunk.parameters():
                parameter.data = parameter.main_grad
        return self._manager(root, verify=False).save(self._checkpoint.manifest.step, self.chunks, None, {})

"""GLM-4.5V / GLM-4.1V on megatron-core.

Shapes: B batch (1 for packs), T tokens, R context-parallel ranks, P tensor-parallel ranks under sequence parallelism
(else 1), H hidden, N patches, V values of a patch, G visual items, M visual tokens, W vocabulary, K rows of a routing
mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron_glmv.config.schema import ModelConfig
from megatron_glmv.model.encoder_dp import encode, encode_spread, gather_ragged
from megatron_glmv.model.fusion import fuse, landing
from megatron_glmv.model.packed import ContextSplit
from megatron_glmv.model.prediction import Ahead, LanguageModel
from megatron_glmv.model.rope import TextRotary
from megatron_glmv.model.router import BalancedRouter
from megatron_glmv.model.vision import VisionEncoder
from megatron_glmv.parallel.groups import Groups


@dataclass(frozen=True)
class VisualInput:
    """Images and videos of a batch."""

    pixel_values: torch.Tensor
    """[N, V] normalised patches, items in order."""
    grids: torch.Tensor
    """[G, 3] int64 (t, h, w) in patches."""
    positions: torch.Tensor
    """[M] int64: b x T + t of the placeholder of each visual token, in the whole sequence of T tokens."""

    def frames(self) -> list[tuple[int, int]]:
        """(height, width) of every temporal patch: the units that attend within themselves."""
        return [(h, w) for t, h, w in self.grids.tolist() for _ in range(t)]


class GLMV(MegatronModule):
    """One pipeline chunk of the model.

        input_ids [B, T/R] ---- embedding -----+
                                               +- fuse -> [T/R/P, B, H] - decoder - head -> logits [B, T/R, W]
        pixel_values [N, V] -- vision encoder -+  (first chunk)           M-RoPE            or losses [B, T/R]
          spread over tensor x context ranks, each feature sent to the rank that fuses it

    `vision` exists on the first chunk, a prediction layer (model/prediction.py), where there is one, on the last;
    `language` is megatron-core's GPTModel with our rotary angles. Token arguments
    are those of this context-parallel rank's part of a pack (model/packed.py), visual ones those of the whole pack.
    """

    def __init__(
        self,
        model: ModelConfig,
        text_config: Any,
        vision_config: Any,
        decoder_spec: TransformerBlockSubmodules,
        backend: BackendSpecProvider,
        groups: Groups,
        *,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
        encoder_data: bool,
        encoder_tensor: bool,
        prediction_spec: Any = None,
    ) -> None:
        super().__init__(text_config)
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = False
        self.prediction = model.mtp
        self.pg_collection = groups.mcore
        self.tp_group, self.cp_group, self.tp_cp_group = groups.tp, groups.cp, groups.tp_cp
        self.encoder_tensor = encoder_tensor and groups.tp.size() > 1
        self.encoder_data = encoder_data and (groups.cp if self.encoder_tensor else groups.tp_cp).size() > 1
        encoder_groups = groups.tensor_only if self.encoder_tensor else groups.solo
        self.vision = (
            VisionEncoder(vision_config, model.vision, model.text.hidden, backend, encoder_groups)
            if pre_process
            else None
        )
        self.language = LanguageModel(
            text_config,
            decoder_spec,
            vocab_size=model.text.vocab,
            max_sequence_length=model.text.max_position,
            pre_process=pre_process,
            post_process=post_process,
            share_embeddings_and_output_weights=False,
            position_embedding_type="mrope",
            rotary_percent=model.text.rotary_percent,
            rotary_base=model.text.rope_theta,
            mtp_block_spec=prediction_spec,
            pg_collection=groups.mcore,
            vp_stage=vp_stage,
        )
        for module in self.language.mtp.modules() if self.predicts else ():
            if isinstance(module, BalancedRouter):
                module.balance_share = model.mtp.loss_weight
        self.language.rotary_pos_emb = TextRotary(model.text)
        self.model_type = self.language.model_type

    def set_input_tensor(self, input_tensor: Any) -> None:
        """megatron-core's schedules hand over the previous stage's output here."""
        self.language.set_input_tensor(input_tensor)

    def shared_embedding_or_output_weight(self) -> torch.Tensor:
        """megatron-core sums the gradients of what two pipeline stages hold: the embedding, for a prediction layer."""
        return self.language.shared_embedding_or_output_weight()  # type: ignore[no-any-return]

    @property
    def predicts(self) -> bool:
        """Whether this chunk has the prediction layer."""
        return bool(self.language.mtp_process)

    @property
    def encoder_gradients_partial(self) -> bool:
        """Whether a tensor-parallel rank has only part of the encoder's gradients: of the frames it encoded, or of the
        placeholders among its tokens. Otherwise all of these ranks have the same, whole (or their own shards')."""
        if self.tp_group.size() == 1 or self.encoder_tensor:
            return False
        return bool(self.encoder_data or self.config.sequence_parallel)

    def embed(
        self, input_ids: torch.Tensor, visual: VisualInput | None, split: ContextSplit | None = None
    ) -> torch.Tensor:
        """[B, T/R] -> fused embeddings [T/R/P, B, H]."""
        embeddings = self.language.embedding(input_ids=input_ids, position_ids=None)
        if visual is None:
            return embeddings  # type: ignore[no-any-return]
        tokens = input_ids.shape[1] * (1 if split is None else split.size)
        features, rows = self._visual_features(visual, tokens, split)
        return fuse(embeddings, features, rows)

    def _visual_features(
        self, visual: VisualInput, tokens: int, split: ContextSplit | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [m, H] of the placeholders among the tokens that this rank embeds, and their rows there [m]."""
        assert self.vision is not None
        frames, positions = visual.frames(), visual.positions.cpu()
        made = sum(height * width for height, width in frames) // self.vision.vision.merge**2
        if made != len(positions):
            raise ValueError(f"{len(positions)} placeholders in the batch, but grids of {made} visual tokens")
        tensor, rank = self.tp_group.size(), self.tp_cp_group.rank()
        lands = landing(positions, tokens, split, tensor, self.config.sequence_parallel)
        if self.config.sequence_parallel:
            askers = [rank]
        else:
            first = rank - rank % tensor
            askers = list(range(first, first + tensor))
        wanted = [(lands.wanted_by == asker).nonzero().flatten() for asker in askers]
        index = torch.cat(wanted)
        if self.encoder_tensor:
            features = self._encoded_together(visual, frames, lands.wanted_by // tensor, index)
        elif self.encoder_data:
            features, which = encode_spread(self.vision, visual.pixel_values, frames, lands.wanted_by, self.tp_cp_group)
            features = features.index_select(0, which.argsort())
            features = gather_ragged(features, [len(w) for w in wanted], self.tp_group) if len(askers) > 1 else features
        else:
            features = encode(self.vision, visual.pixel_values, frames)
            features = features.index_select(0, index.to(features.device))
        return features, lands.rows[index].to(features.device)

    def _encoded_together(
        self, visual: VisualInput, frames: list[tuple[int, int]], wanted_by: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Features `index` [m] of a batch, [m, H], from an encoder whose tensor ranks encode the same frames. wanted_by
        [M]: the context rank that fuses each.

        All tensor ranks have all features of their context rank. Under sequence parallelism each fuses its own part of
        them only, so their gradients are summed on the way back.
        """
        assert self.vision is not None
        if self.encoder_data:
            features, which = encode_spread(self.vision, visual.pixel_values, frames, wanted_by, self.cp_group)
            which = which.cpu()
        else:
            features, which = encode(self.vision, visual.pixel_values, frames), torch.arange(len(wanted_by))
        if self.config.sequence_parallel and frames:
            features = tensor_parallel.copy_to_tensor_model_parallel_region(features, self.tp_group)
        order = which.argsort()
        rows = order[torch.searchsorted(which[order], index)]
        return features.index_select(0, rows.to(features.device))

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        visual: VisualInput | None = None,
        labels: torch.Tensor | None = None,
        packed_seq_params: Any = None,
        inference_context: Any = None,
        padding_mask: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
        ahead: Ahead | None = None,
    ) -> torch.Tensor:
        """Token losses [B, T/R] with `labels` [B, T/R], else logits [B, T/R, W]; hidden states [T/R/P, B, H] before
        the last chunk. With `ahead`, for a chunk that `predicts`, the prediction layer's losses behind the others:
        [2B, T/R].

        input_ids [B, T/R]; position_ids [3, B, T/R]; padding_mask [K, T/R]: the routing mask of model/router.py. In
        training `visual` is always given, empty or not, so that the encoder takes part in every backward pass;
        `embeddings` [T/R, B, H] replaces what `embed` would compute.
        """
        if self.pre_process:
            if embeddings is None:
                embeddings = self.embed(input_ids, visual, getattr(packed_seq_params, "split", None))
            elif self.config.sequence_parallel:
                embeddings = tensor_parallel.scatter_to_sequence_parallel_region(embeddings, group=self.tp_group)
        if padding_mask is not None and self.config.sequence_parallel:
            padding_mask = self._mine(padding_mask)
        if ahead is not None and self.config.sequence_parallel:
            ahead = replace(ahead, padding_mask=self._mine(ahead.padding_mask))
        return self.language(  # type: ignore[no-any-return]
            input_ids,
            position_ids,
            None,
            decoder_input=embeddings,
            labels=labels,
            packed_seq_params=packed_seq_params,
            inference_context=inference_context,
            padding_mask=padding_mask,
            runtime_gather_output=True if inference_context is not None else None,
            ahead=ahead,
        )

    def _mine(self, mask: torch.Tensor) -> torch.Tensor:
        """[K, T/R] -> [K, T/R/P]."""
        part: torch.Tensor = mask.chunk(self.tp_group.size(), dim=1)[self.tp_group.rank()]
        return part

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Shards under global names. Those of an encoder that is not sharded were made for a group of one rank; here
        they become replicas over TP."""
        state: dict[str, Any] = self.language.sharded_state_dict(f"{prefix}language.", sharded_offsets, metadata)
        if self.vision is not None:
            vision = self.vision.sharded_state_dict(f"{prefix}vision.", sharded_offsets, metadata)
            for shard in vision.values() if not self.encoder_tensor else ():
                pipeline, _, data = shard.replica_id
                shard.replica_id = (pipeline, self.tp_group.rank(), data)
            state.update(vision)
        return state

"""Our model a layer at a time: chunks as pipeline stages have them, filled from a checkpoint of either format.

    first    embedding and vision encoder, no layer        layer N    one decoder layer        head    norm and output

Shapes: T tokens of a pack, H decoder width, E experts, W vocabulary, N patches, C encoder width, M visual tokens.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from megatron_glmv.checkpoint.hf.rows import Rows
from megatron_glmv.checkpoint.sharded import model_state
from megatron_glmv.config.schema import Config
from megatron_glmv.data.types import PackedBatch
from megatron_glmv.model.build import sharding_metadata
from megatron_glmv.model.config import text_transformer_config, vision_transformer_config
from megatron_glmv.model.fusion import fuse
from megatron_glmv.model.glmv import GLMV
from megatron_glmv.model.initialise import shards
from megatron_glmv.model.specs import decoder_block_spec, provider
from megatron_glmv.stages.session import Session
from megatron_glmv.train.step import model_inputs

Tensors = dict[str, torch.Tensor]
SLICE = 64 << 20
"""Bytes read at a time."""


class Streamed:
    """Makes and fills the chunks. Layers of one kind share their memory: a layer is gone when the next is asked for."""

    def __init__(self, config: Config, session: Session, rows: Rows, rounded: bool) -> None:
        self.config, self.session, self.rows, self.rounded = config, session, rows, rounded
        self._text = text_transformer_config(config, session.groups.topology)
        self._kind: bool | None = None
        self._layer: Layer | None = None

    def first(self) -> First:
        return First(self._filled(self._chunk(0, 0, pre=True)))

    def layer(self, n: int) -> Layer:
        moe = self.config.model.text.moe
        kind = moe is not None and n >= moe.first_dense
        if self._layer is None or kind != self._kind:
            self._drop()
            self._layer, self._kind = Layer(self._chunk(n, 1)), kind
        self._filled(self._layer.chunk, n)
        return self._layer

    def head(self) -> Head:
        self._drop()
        return Head(self._filled(self._chunk(0, 0, post=True)))

    def _drop(self) -> None:
        """The memory of a layer goes before the next chunk is made; modules refer to each other in circles."""
        self._layer = None
        gc.collect()

    def _chunk(self, first: int, layers: int, pre: bool = False, post: bool = False) -> Any:
        model, backend = self.config.model, provider(self.session.backend)
        chunk = GLMV(
            model,
            self._text,
            vision_transformer_config(self.config, model.vision),
            decoder_block_spec(model.text, backend, first, layers),
            backend,
            self.session.groups,
            pre_process=pre,
            post_process=post,
            vp_stage=None,
            prediction_spec=None,
            encoder_data=False,
            encoder_tensor=False,
        )
        return chunk.eval()

    def _filled(self, chunk: Any, layer: int = 0) -> Any:
        """The chunk's only layer, which it counts as its first, is the model's layer `layer`."""
        for shard in shards(model_state(chunk, sharding_metadata(self.session.groups))):
            name = shard.key.replace("decoder.layers.0.", f"decoder.layers.{layer}.")
            shape, offset = shard.global_shape, shard.global_offset
            start = offset[0] * shape[1] + offset[1] if len(shape) == 3 else offset[0]
            width = shape[-1] if len(shape) == 3 else shard.data.numel() // shard.data.shape[0]
            self._read(name, start, shard.data.view(-1, width))
        return chunk

    def _read(self, name: str, start: int, out: torch.Tensor) -> None:
        dtype = self.rows.dtype(name)
        step = max(1, SLICE // (out.shape[1] * dtype.itemsize))
        rounded = self.rounded and not name.endswith("expert_bias")
        for at in range(0, len(out), step):
            part = out[at : at + step]
            held = torch.empty(part.shape, dtype=dtype)
            self.rows.read(name, start + at, held)
            part.copy_(held.bfloat16() if rounded else held)


class First:
    """Embedding and encoder."""

    def __init__(self, chunk: Any) -> None:
        self.chunk = chunk

    def drop(self) -> None:
        """Gives its memory back."""
        self.chunk = None
        gc.collect()

    def encode(self, pixels: torch.Tensor, frames: list[tuple[int, int]], given: Tensors) -> Tensors:
        """pixels [N, V] -> embedded [N, C], block.K [N, C], features [M, H]. `given`: the same of another model, whose
        parts take the place of what goes into each of ours."""
        encoder, found, handles = self.chunk.vision, dict[str, torch.Tensor](), []

        def watch(module: Any, name: str, before: str) -> None:
            def enter(_: Any, args: Any, named: Any) -> Any:
                x = args[0] if args else named["hidden_states"]
                if before == "embedded":
                    found["embedded"] = x[:, 0].clone()
                if before not in given:
                    return None
                x = given[before][:, None]
                return ((x, *args[1:]), named) if args else (args, {**named, "hidden_states": x})

            def leave(_: Any, __: Any, output: Any) -> None:
                if name:
                    found[name] = (output[0] if isinstance(output, tuple) else output)[:, 0].clone()

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))

        blocks = encoder.blocks.layers
        for k, block in enumerate(blocks):
            watch(block, f"block.{k}", f"block.{k - 1}" if k else "embedded")
        watch(encoder.blocks.final_layernorm, "", f"block.{len(blocks) - 1}")
        found["features"] = encoder(pixels, frames)
        for handle in handles:
            handle.remove()
        return found

    def embed(self, pack: PackedBatch, features: torch.Tensor | None) -> torch.Tensor:
        """-> [T, 1, H], with the features [M, H] of this pack's pictures at their places."""
        embedded: torch.Tensor = self.chunk.embed(pack.input_ids[None], None)
        return embedded if features is None else fuse(embedded, features, pack.visual_positions)


class Layer:
    """One decoder layer."""

    def __init__(self, chunk: Any) -> None:
        self.chunk = chunk
        self.layer = chunk.language.decoder.layers[0]
        names = dict(self.layer.named_children())
        self._found: Tensors = {}
        self._keep("attention", names.get("post_self_attn_layernorm", self.layer.self_attention))
        self._keep("mlp", names.get("post_mlp_layernorm", self.layer.mlp))
        if hasattr(self.layer.mlp, "router"):
            self.layer.mlp.router.register_forward_hook(self._keep_choice)

    def _keep(self, name: str, module: Any) -> None:
        def keep(_: Any, __: Any, output: Any) -> None:  # a copy: without gradients the residual is added in place
            self._found[name] = (output[0] if isinstance(output, tuple) else output)[:, 0].clone()

        module.register_forward_hook(keep)

    def _keep_choice(self, _: Any, __: Any, output: Any) -> None:
        self._found["chosen"] = output[1]

    def run(self, pack: PackedBatch, hidden: torch.Tensor) -> Tensors:
        """hidden [T, 1, H] -> attention, mlp (what is added to the residual), output [T, H]; chosen [T, E] bool."""
        inputs = model_inputs(pack, hidden.device, None)
        self.chunk.set_input_tensor(hidden)
        output = self.chunk(
            inputs["input_ids"],
            inputs["position_ids"],
            packed_seq_params=inputs["packed_seq_params"],
            padding_mask=inputs["padding_mask"],
        )
        return {**self._found, "output": output[:, 0]}

    def scores(self, given: torch.Tensor) -> torch.Tensor:
        """What the router selects by: [n, H] -> sigmoid and bias [n, E]."""
        router = self.layer.mlp.router
        scores: torch.Tensor = router.gating(given).sigmoid() + router.expert_bias
        return scores

    def each_expert(self, given: torch.Tensor) -> torch.Tensor:
        """Row e of [E, H] through expert e -> [E, H]."""
        count = len(given)
        ones = torch.ones(count, dtype=torch.int64)
        output: torch.Tensor = self.layer.mlp.experts(given, ones, torch.ones(count))[0]
        return output


class Head:
    """Final norm and output layer."""

    def __init__(self, chunk: Any) -> None:
        self.chunk = chunk

    def logits(self, pack: PackedBatch, hidden: torch.Tensor) -> torch.Tensor:
        """[T, 1, H] -> [T, W]."""
        inputs = model_inputs(pack, hidden.device, None)
        self.chunk.set_input_tensor(hidden)
        output: torch.Tensor = self.chunk(
            inputs["input_ids"], inputs["position_ids"], packed_seq_params=inputs["packed_seq_params"]
        )
        return output[0]

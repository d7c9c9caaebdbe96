"""The vision encoder: patches -> ViT on megatron-core layers -> 2x2 downsample -> merger. Paper: arXiv 2507.01006,
section 2.

Shapes: N patches, V = 3 x frames x patch x patch values of a patch, C encoder width, H decoder width, G visual items,
M = N / merge^2 visual tokens. Patches of a frame are ordered block by block, so that merge^2 neighbours are contiguous.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.backends import BackendSpecProvider
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlock

from megatron_glmv.config.schema import VisionConfig
from megatron_glmv.model.packed import packed_segments
from megatron_glmv.model.rope import VisionRotary
from megatron_glmv.model.specs import vision_block_spec


@lru_cache(maxsize=1024)
def patch_coordinates(height: int, width: int, merge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each patch of a height x width frame, in the order in which patches are stored; both [N]."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width)[None, :].expand(height, width)

    def by_block(grid: torch.Tensor) -> torch.Tensor:
        return grid.reshape(height // merge, merge, width // merge, merge).transpose(1, 2).reshape(-1)

    return by_block(rows), by_block(columns)


class PatchEmbedding(torch.nn.Module):
    """A 3-D convolution whose stride is its kernel, which is one matrix product on flattened patches (a quarter of
    the time)."""

    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        kernel = (vision.temporal_patch, vision.patch, vision.patch)
        self.weight = torch.nn.Parameter(torch.empty(vision.hidden, 3, *kernel, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(vision.hidden, dtype=dtype))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, V] -> [N, C]."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


class PositionEmbedding(torch.nn.Module):
    """A learned square grid, read at each patch's relative place by bicubic interpolation (paper, section 2)."""

    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.side = vision.position_grid
        self.merge = vision.merge
        self.weight = torch.nn.Parameter(torch.empty(self.side * self.side, vision.hidden, dtype=dtype))

    def forward(self, frames: list[tuple[int, int]]) -> torch.Tensor:
        """(height, width) in patches of each frame -> [N, C]. Equal sizes are interpolated once."""
        table = self.weight.float().view(self.side, self.side, -1).permute(2, 0, 1)[None]
        made = {size: self._one(table, *size) for size in dict.fromkeys(frames)}
        if len(made) == 1:
            (one,) = made.values()
            return one.repeat(len(frames), 1).to(self.weight.dtype)
        return torch.cat([made[size] for size in frames]).to(self.weight.dtype)

    def _one(self, table: torch.Tensor, height: int, width: int) -> torch.Tensor:
        rows, columns = patch_coordinates(height, width, self.merge)
        places = torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=-1) * 2 - 1
        places = places.to(table.device)[None, :, None]  # [1, N, 1, (x, y)]
        read = F.grid_sample(table, places, mode="bicubic", padding_mode="border", align_corners=False)
        return read[0, :, :, 0].T


class Downsample(torch.nn.Module):
    """A 2-D convolution over each merge x merge block: [N, C] -> [M, H]."""

    def __init__(self, vision: VisionConfig, out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(out, vision.hidden, vision.merge, vision.merge, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(out, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.weight.permute(0, 2, 3, 1).flatten(1)  # block-major patches: (row, column, channel)
        return F.linear(x.reshape(-1, kernel.shape[1]), kernel, self.bias)


class Merger(MegatronModule):
    """proj -> LayerNorm -> GELU -> SwiGLU, [M, H] -> [M, H]."""

    def __init__(self, config: Any, vision: VisionConfig, out: int, tp_group: Any) -> None:
        wide = dataclasses.replace(config, hidden_size=out, ffn_hidden_size=vision.merger_ffn)
        super().__init__(wide)
        self.tp_group = tp_group
        self.proj = torch.nn.Linear(out, out, bias=False, dtype=config.params_dtype)
        self.post_projection_norm = torch.nn.LayerNorm(out, eps=1e-5, dtype=config.params_dtype)
        linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        self.mlp = MLP(wide, linears, ffn_hidden_size=wide.ffn_hidden_size, tp_group=tp_group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.post_projection_norm(self.proj(x)))
        output, _ = self.mlp(x)
        return output  # type: ignore[no-any-return]


class VisionEncoder(MegatronModule):
    """Encodes whole frames; frames never see each other (`attention segments` are frames of one temporal patch).

    It is held by every rank of the first pipeline stage; model/encoder_dp.py spreads its work. `groups.tp` is a group
    of one rank, or the tensor-parallel ranks where they share its linear layers: they then encode the same frames, and
    every one of them has the whole features.
    """

    def __init__(self, config: Any, vision: VisionConfig, out: int, backend: BackendSpecProvider, groups: Any) -> None:
        super().__init__(config)
        self.vision = vision
        self.tp_group = groups.tp
        dtype = config.params_dtype
        norm = backend.layer_norm(rms_norm=True)
        self.patch_embed = PatchEmbedding(vision, dtype)
        self.post_conv_layernorm = norm(config=config, hidden_size=vision.hidden, eps=vision.norm_eps)
        self.position_embedding = PositionEmbedding(vision, dtype)
        self.rotary = VisionRotary(vision.head_dim, vision.rope_theta)
        self.blocks = TransformerBlock(config, vision_block_spec(vision.depth, backend), pg_collection=groups)
        self.downsample = Downsample(vision, out, dtype)
        self.merger = Merger(config, vision, out, groups.tp)
        for parameter in self.parameters() if groups.tp.size() == 1 else ():
            # Set by megatron-core's linear layers, whose group is one rank here: every tensor-parallel rank holds the
            # same copy, which the gradient norm has to count once.
            parameter.tensor_model_parallel = False

    def forward(self, patches: torch.Tensor, frames: list[tuple[int, int]]) -> torch.Tensor:
        """patches [N, V], normalised; (height, width) of each frame in patches -> [M, H]."""
        x = self.post_conv_layernorm(self.patch_embed(patches.to(self.patch_embed.weight.dtype)))
        x = x + self.position_embedding(frames)
        coordinates = [patch_coordinates(*size, self.vision.merge) for size in frames]
        rows = torch.cat([c[0] for c in coordinates]).to(x.device)
        columns = torch.cat([c[1] for c in coordinates]).to(x.device)
        lengths = torch.tensor([0, *(height * width for height, width in frames)])
        geometry = packed_segments(lengths.cumsum(0).to(torch.int32).to(x.device))
        x = self.blocks(x[:, None], None, rotary_pos_emb=self.rotary(rows, columns), packed_seq_params=geometry)
        return self.merger(self.downsample(x[:, 0]))  # type: ignore[no-any-return]

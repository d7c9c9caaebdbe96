"""Rotary angles of the decoder (3-D M-RoPE) and of the vision encoder (2-D).

Shapes: B batch, T tokens, N patches, F rotary frequencies (head_dim x rotary_percent / 2), D width of a vision head.
Angles are returned as megatron-core's `apply_rotary_pos_emb` takes them: [sequence, batch, 1, rotated width].
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_glmv.config.schema import TextConfig


def inverse_frequencies(width: int, theta: float) -> torch.Tensor:
    """theta^(-2i / width) for i in [0, width / 2), fp32 (Su et al., arXiv 2104.09864)."""
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)


class TextRotary(torch.nn.Module):
    """Angles from time, height and width positions; each frequency belongs to one of the three, by `mrope_section`.

    GLM-4.5V rotates halves of the rotated width (x_i with x_{i+F}), GLM-4.1V neighbouring pairs (x_2i with x_2i+1). The
    sections are cut on the F frequencies before they are laid out for either style. Called as megatron-core calls its
    `MultimodalRotaryEmbedding`, which raises for the second style and slices by context-parallel rank even for packs.
    """

    def __init__(self, text: TextConfig) -> None:
        super().__init__()
        width = int(text.head_dim * text.rotary_percent)
        self.interleaved = text.rotary_interleaved
        self.section = list(text.mrope_section)
        self.register_buffer("inv_freq", inverse_frequencies(width, text.rope_theta), persistent=False)

    def forward(self, position_ids: torch.Tensor, mrope_section: Any = None, cp_group: Any = None) -> torch.Tensor:
        """[3, B, T] -> [T, B, 1, 2F]."""
        inv_freq = self.get_buffer("inv_freq").float()
        angles = position_ids.float().unsqueeze(-1) * inv_freq.to(position_ids.device)  # [3, B, T, F]
        parts = torch.split(angles, self.section, dim=-1)
        mixed = torch.cat([part[axis % 3] for axis, part in enumerate(parts)], dim=-1)  # [B, T, F]
        mixed = mixed.repeat_interleave(2, dim=-1) if self.interleaved else torch.cat([mixed, mixed], dim=-1)
        return mixed.transpose(0, 1).unsqueeze(2).contiguous()


class VisionRotary(torch.nn.Module):
    """Half of a head's frequencies follow the row of a patch, half its column; halves are rotated (section 2 of
    2507.01006)."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.register_buffer("inv_freq", inverse_frequencies(head_dim // 2, theta), persistent=False)

    def forward(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """rows, columns: [N] of each patch within its frame -> [N, 1, 1, D]."""
        inv_freq = self.get_buffer("inv_freq").float()
        inv_freq = inv_freq.to(rows.device)
        angles = torch.cat([rows.float()[:, None] * inv_freq, columns.float()[:, None] * inv_freq], dim=-1)
        return torch.cat([angles, angles], dim=-1)[:, None, None, :]

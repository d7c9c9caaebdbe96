"""What travels between the data path and the trainer.

Shapes: T tokens in a pack, S segments (samples and the padding behind them), N patches, G visual items (images, or
whole videos), V = 3 x temporal_patch x patch x patch values in a patch (1,176), M = N / merge^2 visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # environments draw their pictures in processes of their own, which torch would keep waiting
    import torch


IMAGE, VIDEO = "image", "video"


@dataclass(frozen=True)
class Grid:
    """Patches of one visual item: `t` temporal patches of `h` x `w` spatial patches."""

    t: int
    h: int
    w: int

    @property
    def patches(self) -> int:
        return self.t * self.h * self.w

    def tokens(self, merge: int = 2) -> int:
        """Language tokens of the whole item."""
        return self.patches // (merge * merge)


@dataclass(frozen=True)
class MediaPlan:
    """How one medium will be seen, computed once from its container when the index is made, never from decoding again.

    `height` and `width` are those after smart-resize. For a video, `frames` are the indices of shown frames that GLM's
    sampler takes (an even count) and `seconds` the whole second written behind each temporal patch (len = grid.t).
    """

    kind: str
    member: str
    """Name of the tar member (or file) that holds the bytes."""
    grid: Grid
    height: int
    width: int
    frames: tuple[int, ...] = ()
    seconds: tuple[int, ...] = ()


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch: one pack of T tokens. A batch carries its own geometry; nothing is inferred from token
    values."""

    input_ids: torch.Tensor
    """[T] int64. Padding holds the pad token, but is known by `padding` only."""
    labels: torch.Tensor
    """[T] int64: the token that follows inside the same sample; 0 where `loss_weights` is 0."""
    loss_weights: torch.Tensor
    """[T] float32: weight of predicting labels[t] at t."""
    position_ids: torch.Tensor
    """[3, T] int64: time, height, width; restarts at 0 in each sample."""
    cu_seqlens: torch.Tensor
    """[S + 1] int32, from 0 to T. Padding at the end of the pack is a segment of its own."""
    padding: torch.Tensor
    """[T] bool: True on padding, also on the alignment padding inside a sample's segment."""
    pixel_values: torch.Tensor
    """[N, V] uint8 patches (not normalised), items in order, block-major inside a frame as GLM's processor has them."""
    grids: torch.Tensor
    """[G, 3] int64 (t, h, w) of each visual item, in the order of pixel_values."""
    visual_positions: torch.Tensor
    """[M] int64: index in the pack of the placeholder of each visual token, in the order of pixel_values."""
    sample_ids: tuple[str, ...]
    """Keys of the samples in the pack, failed ones too."""
    failed: tuple[str, ...] = ()
    """Keys of samples that could not be decoded: their places are kept, loss weight 0, pixels mid-grey."""
    decoders: tuple[str, ...] = ()
    """Decoder that produced each visual item: dali, pillow, pyav or none (failed)."""


Json = dict[str, Any]
"""What json.loads gives for an object."""
